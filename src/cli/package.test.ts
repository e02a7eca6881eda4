/** What a user gets: the package is packed, installed into an empty project and used from there. */
import assert from 'node:assert/strict';
import { execFile } from 'node:child_process';
import { mkdir, mkdtemp, readFile, rm, writeFile } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { delimiter, dirname, join } from 'node:path';
import { after, before, test, type TestContext } from 'node:test';
import { fileURLToPath } from 'node:url';
import { promisify } from 'node:util';

const repository = fileURLToPath(new URL('../..', import.meta.url));
const run = promisify(execFile);
const env = {
  ...process.env,
  PATH: `${dirname(process.execPath)}${delimiter}${process.env['PATH']}`,
  npm_config_audit: 'false',
  npm_config_fund: 'false',
  npm_config_update_notifier: 'false',
};

let project: string;
let unreachable: string | undefined;

async function installPackage(): Promise<void> {
  const { stdout } = await run('npm', ['pack', '--json', '--pack-destination', project], { cwd: repository, env });
  const packed = JSON.parse(stdout.slice(stdout.search(/^[[{]/m))) as
    | { filename: string }[]
    | Record<string, { filename: string }>;
  const { filename } = Object.values(packed)[0]!;
  await writeFile(join(project, 'package.json'), '{ "name": "empty", "private": true, "type": "module" }\n');
  await run('npm', ['install', '--prefer-offline', `./${filename}`], { cwd: project, env });
}

before(async () => {
  project = await mkdtemp(join(tmpdir(), 'nostos-package-'));
  try {
    await installPackage();
  } catch (error) {
    const text = String((error as { stderr?: string }).stderr ?? error);
    if (!/ENOTFOUND|EAI_AGAIN|ECONNREFUSED|ETIMEDOUT|ENETUNREACH|ENOTCACHED/.test(text)) throw error;
    unreachable = 'the package registry cannot be reached';
  }
});

after(() => rm(project, { recursive: true, force: true }));

/** A test that needs the installed package. */
function installed(name: string, fn: (t: TestContext) => Promise<void>): void {
  test(name, async (t) => {
    if (unreachable === undefined) await fn(t);
    else t.skip(unreachable);
  });
}

installed('the package brings neither a Node nor its tests along', async () => {
  const { stdout } = await run('npm', ['ls', '--all', '--json', '--omit=optional'], { cwd: project, env });
  assert.doesNotMatch(stdout, /"node(?:-bin-setup|-linux-\w+)?": \{/);
  const { stdout: found } = await run('find', [join(project, 'node_modules', 'nostos'), '-name', '*.test.*']);
  assert.equal(found, '');
  const manifest = JSON.parse(await readFile(join(project, 'node_modules/nostos/package.json'), 'utf8')) as object;
  assert.ok('exports' in manifest);
});

installed('the tour runs from the installed package', async () => {
  const bin = join(project, 'node_modules', '.bin', 'nostos');
  const { stdout } = await run(bin, ['tour', '--json'], { cwd: project, env, maxBuffer: 2 ** 24 });
  const report = JSON.parse(stdout) as { ok: boolean; parts: { part: string; ok: boolean }[] };
  assert.equal(report.ok, true);
  assert.ok(report.parts.every(({ ok }) => ok));
});

const USE = `
  const node = await openNode({ dir: process.argv[2] });
  const tenant = await node.tenants.create('acme', { ifNotExists: true });
  await tenant.migrate(['create table t (id integer primary key not null)']);
  await tenant.write((tx) => tx.run('insert into t default values'));
  console.log((await tenant.query('select count(*) as n from t'))[0].n);
  await node.close();
`;

installed('import and require give the same library', async () => {
  await writeFile(join(project, 'use.mjs'), `import { openNode } from 'nostos';\n${USE}`);
  await writeFile(join(project, 'use.cjs'), `const { openNode } = require('nostos');\n(async () => {${USE}})();\n`);
  const dir = join(project, 'data');
  assert.equal((await run(process.execPath, ['use.mjs', dir], { cwd: project })).stdout, '1\n');
  const second = await run(process.execPath, ['use.cjs', dir], { cwd: project });
  assert.equal(second.stdout, '2\n');
  assert.equal(second.stderr, '');
});

installed('the types compile in a strict project', async () => {
  await mkdir(join(project, 'typed'));
  const source = `
    import { openNode, sql, isNostosError, type Node, type NodeStatus, type Row } from 'nostos';
    const node: Node = await openNode({ dir: './x', limits: { queryRowsMax: 10 } });
    const tenant = node.tenant('acme');
    const id: number = await tenant.write((tx) => Number(tx.run(sql\`insert into t values (\${1})\`).lastInsertRowid));
    const rows: Row[] = await tenant.query('select 1');
    const status: NodeStatus = await node.status();
    if (isNostosError(new Error(String(id + rows.length)), 'NOT_PRIMARY')) await node.close();
    // @ts-expect-error -- an LSN is not any number
    node.log({ from: status.pid });
  `;
  await writeFile(join(project, 'typed', 'use.ts'), source);
  const compiler = fileURLToPath(import.meta.resolve('typescript/package.json'));
  const typeRoots = join(repository, 'node_modules', '@types');
  await run(
    process.execPath,
    [
      join(dirname(compiler), 'bin', 'tsc'),
      ...['--noEmit', '--strict', '--module', 'nodenext', '--target', 'es2024', '--lib', 'es2024,esnext.disposable'],
      ...['--typeRoots', typeRoots, '--types', 'node', join(project, 'typed', 'use.ts')],
    ],
    { cwd: project },
  ).catch((error: { stdout?: string }) => assert.fail(error.stdout));
});
