/**
 * Part of `npm run lint`: imports point down, and I/O, clocks and randomness stay at the edge. What a layer may import
 * is a lower number in `LAYERS`; folders of one number do not know each other. A pure file that starts to read the clock
 * or the disk can no longer be simulated, so each driver below `node/` is named in `DRIVERS`.
 */
import { globSync, readFileSync } from 'node:fs';
import { dirname, join, normalize } from 'node:path';
import { fileURLToPath } from 'node:url';

const LAYERS: Readonly<Record<string, number>> = {
  base: 0,
  wire: 1,
  log: 1,
  coordination: 1,
  // Tenants are what the log says, so the store reads records; the log knows nothing of tenants.
  store: 2,
  replication: 3,
  restore: 4,
  backup: 4,
  rollback: 4,
  'anti-entropy': 4,
  actor: 4,
  testing: 5,
  node: 6,
  'index.ts': 7,
  cli: 8,
};

/** Folders that are the edge: what they do with the outside world is their reason to be. */
const EDGES = new Set(['base', 'testing', 'node', 'cli']);

/** Files of the ground floor and of features that touch the outside world, each an adapter around something pure. */
const DRIVERS: readonly RegExp[] = [
  // Sockets, name lookups and their time limits; the files of a TLS identity.
  /^src\/wire\/(?:byte-stream|certificates|connect|listener|dispatcher|tls-files)\.ts$/,
  // The adapters: a directory, sockets; what a URL names; the timer of a watch.
  /^src\/coordination\/(?:embedded|etcd|etcd-client|open-coordinator|watch)\.ts$/,
  // Files of tenants: their creation, removal and copies.
  /^src\/store\/(?:catalog|open-file|file-hold|create-tenant-file|export-file|import-source)\.ts$/,
  // The time limit of `transaction(async fn)`, which waits for the caller's own promises.
  /^src\/store\/tenant\.ts$/,
  // A plain directory as a source; what is fetched, on the disk; the timers of a transfer.
  /^src\/restore\/(?:directory-source|stream\/(?:staged-file|timers|.*\.fixture))\.ts$/,
  // Where backups are stored: a directory, object storage; pauses before a repeated request, and signs of life.
  /^src\/backup\/(?:backend\/(?:local|open-backend|pause|s3)|repository\/(?:heartbeat|keyring-file))\.ts$/,
  // Files that the reference's restore serves.
  /^src\/restore\/reference\/(?:served-files|peers\.fixture)\.ts$/,
];

const IO_MODULES =
  /^(?:node:)?(?:fs|fs\/promises|net|http|https|http2|tls|dgram|dns|child_process|worker_threads|cluster|timers|timers\/promises)$/;
const IO_CALLS =
  /(?<![.\w])(?:setTimeout|setInterval|setImmediate|Date\.now|Math\.random|performance\.now|new Date\(\)|process\.hrtime|randomBytes|randomUUID)\b/g;
const IMPORTS =
  /\b(?:import|export)\b[^'";]*?\bfrom\s*['"]([^'"]+)['"]|\bimport\s*\(\s*['"]([^'"]+)['"]|\bimport\s+['"]([^'"]+)['"]/g;
const COMMENTS = /\/\*[\s\S]*?\*\/|(?<!:)\/\/.*$/gm;

export interface Violation {
  readonly file: string;
  readonly rule: 'direction' | 'edge' | 'unknown-folder';
  readonly message: string;
}

/** The folder below `src/` that a path of the form `src/log/writer.ts` belongs to. */
function folderOf(file: string): string {
  return file.split('/')[1]!;
}

function checkImport(file: string, folder: string, specifier: string, isTest: boolean): Violation[] {
  if (!specifier.startsWith('.')) {
    if (isTest || EDGES.has(folder) || DRIVERS.some((driver) => driver.test(file)) || !IO_MODULES.test(specifier))
      return [];
    return [{ file, rule: 'edge', message: `imports ${specifier}: only drivers, adapters and base/ touch it` }];
  }
  const target = normalize(join(dirname(file), specifier)).replaceAll('\\', '/');
  if (!target.startsWith('src/')) return [];
  const targetFolder = folderOf(target);
  if (targetFolder === folder || (isTest && targetFolder === 'testing')) return [];
  const from = LAYERS[folder]!;
  const to = LAYERS[targetFolder];
  if (to === undefined) return [{ file, rule: 'unknown-folder', message: `imports ${target}: give it a layer` }];
  if (targetFolder === 'testing' || to >= from)
    return [{ file, rule: 'direction', message: `imports ${target}: imports point down` }];
  return [];
}

/** Checks one file, given as its path from the repository's root (`src/…`) and its text. */
export function checkFile(file: string, text: string): Violation[] {
  const folder = folderOf(file);
  if (LAYERS[folder] === undefined)
    return [{ file, rule: 'unknown-folder', message: `src/${folder} has no layer in scripts/check-layers.ts` }];
  const isTest = /\.(?:test|fixture)\.ts$/.test(file);
  const code = text.replace(COMMENTS, '');
  const violations = [...code.matchAll(IMPORTS)].flatMap((match) =>
    checkImport(file, folder, (match[1] ?? match[2] ?? match[3])!, isTest),
  );
  if (isTest || EDGES.has(folder) || DRIVERS.some((driver) => driver.test(file))) return violations;
  for (const [call] of code.matchAll(IO_CALLS))
    violations.push({ file, rule: 'edge', message: `uses ${call}: take a clock, timer or randomness from outside` });
  return violations;
}

function main(): void {
  const root = fileURLToPath(new URL('..', import.meta.url));
  const files = globSync('src/**/*.ts', { cwd: root }).filter((file) => !/\.as\.ts$|\/assembly\//.test(file));
  const violations = files.toSorted().flatMap((file) => checkFile(file, readFileSync(join(root, file), 'utf8')));
  for (const { file, rule, message } of violations) process.stderr.write(`${file}: ${rule}: ${message}\n`);
  process.stdout.write(`${files.length} files, ${violations.length} layer violations\n`);
  if (violations.length > 0) process.exitCode = 1;
}

if (import.meta.main) main();
