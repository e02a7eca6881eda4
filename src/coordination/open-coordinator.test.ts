import assert from 'node:assert/strict';
import { existsSync, mkdtempSync, readFileSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { test } from 'node:test';
import { isNostosError } from '../base/errors.ts';
import { groupRecord } from '../testing/coordinator-compliance.ts';
import { COORDINATOR_PARAMETERS, openCoordinator } from './open-coordinator.ts';

test('the URL of a coordinator opens without asking it, whatever its form', async (t) => {
  const dir = mkdtempSync(join(tmpdir(), 'nostos-url-'));
  t.after(() => rmSync(dir, { recursive: true, force: true }));
  writeFileSync(join(dir, 'file'), 'text\n');
  const file = join(dir, 'file');
  const urls = [
    `embedded:${dir}`,
    `embedded://${dir}?poll-ms=50`,
    'etcd://127.0.0.1:1,localhost:2,[::1]:3',
    'etcd://127.0.0.1:1/a/b.c/d-e/?timeout-ms=100&attempt-timeout-ms=50&poll-ms=20',
    'etcd://etcd.example:2379?plaintext=allow',
    `etcds://etcd.example:2379,10.0.0.1:2379/a?ca=${file}&cert=${file}&key=${file}&user=u&password-file=${file}`,
    's3://some-bucket?region=eu-central-1',
    's3://some-bucket/a/b?endpoint=https://s3.example&path-style=false&timeout-ms=100',
    's3://some-bucket?endpoint=http://127.0.0.1:9000&path-style=true',
    's3://some-bucket?endpoint=http://s3.example&plaintext=allow',
  ];
  for (const url of urls) await (await openCoordinator(url)).close();
  const path = join(dir, 'a b%');
  await (await openCoordinator(`embedded:${encodeURI(path)}`)).group('g').compareAndSet(0, groupRecord());
  assert.ok(existsSync(join(path, 'groups', 'g', 'group.1.json')));
});

test('a URL that is none is refused, with what is wrong with it and without its secrets', async () => {
  const cases: [url: string, reason: RegExp][] = [
    ['', /begins with none of embedded, etcd, etcds, s3/],
    ['zookeeper://a:1', /begins with none/],
    ['constructor:/a', /begins with none/],
    ['embedded:relative', /not the absolute path/],
    ['embedded://host/path', /not the absolute path/],
    ['embedded:/a%zz', /stands for nothing/],
    ['embedded:/a?poll-ms=0', /poll-ms is no number/],
    ['embedded:/a?poll-ms=1e3', /poll-ms is no number/],
    ['embedded:/a?poll-ms=5&poll-ms=6', /there twice/],
    ['embedded:/a?timeout-ms=5', /no parameter "timeout-ms", only poll-ms/],
    ['etcd:127.0.0.1:1', /no \/\/ with a host/],
    ['etcd:///a', /no \/\/ with a host/],
    ['etcd://127.0.0.1', /"127.0.0.1" is not host:port/],
    ['etcd://127.0.0.1:1,', /"" is not host:port/],
    ['etcd://127.0.0.1:99999', /not host:port/],
    ['etcd://[::1:1', /not host:port/],
    [`etcd://${'127.0.0.1:1,'.repeat(16)}127.0.0.1:1`, /more than 16 members/],
    ['etcd://127.0.0.1:1/../a', /prefix/],
    ['etcd://127.0.0.1:1/a//b', /prefix/],
    ['etcd://127.0.0.1:1/a b', /prefix/],
    ['etcd://10.0.0.1:2379', /not of this machine.*etcds:\/\/ speaks TLS, or plaintext=allow/],
    ['etcd://127.0.0.1:1,127.0.0.1.evil.example:1', /not of this machine/],
    ['etcd://10.0.0.1:2379?plaintext=yes', /plaintext is not allow/],
    ['etcd://u:secret@127.0.0.1:1', /use user and password-file/],
    ['etcd://127.0.0.1:1?user=u', /user and password-file go together/],
    ['etcd://127.0.0.1:1?user=u&password-file=/nowhere', /password-file: \/nowhere cannot be read/],
    ['etcd://127.0.0.1:1?ca=/x', /no parameter "ca"/],
    ['etcds://127.0.0.1:1?cert=/nowhere', /cert: \/nowhere/],
    ['s3://B', /no bucket/],
    ['s3://bucket?endpoint=', /endpoint is empty/],
    ['s3://bucket?endpoint=s3.example', /endpoint is no URL/],
    ['s3://bucket?endpoint=ftp://127.0.0.1', /endpoint is no URL/],
    ['s3://bucket?endpoint=http://u:secret@127.0.0.1', /endpoint is no URL/],
    ['s3://bucket?endpoint=http://s3.example', /not of this machine/],
    ['s3://bucket?path-style=1', /path-style is not true or false/],
    ['s3://bucket?secret-access-key=secret', /no parameter/],
  ];
  for (const [url, reason] of cases)
    await assert.rejects(openCoordinator(url), (error: unknown) => {
      assert.ok(isNostosError(error, 'INVALID_ARGUMENT'), `${url}: ${String(error)}`);
      assert.match(error.message, reason, url);
      assert.doesNotMatch(JSON.stringify(error.toJSON()), /secret(?!-access-key)/, url);
      return true;
    });
});

test('the README has every parameter of every scheme', () => {
  const readme = readFileSync(new URL('./README.md', import.meta.url), 'utf8');
  for (const [scheme, names] of Object.entries(COORDINATOR_PARAMETERS))
    for (const name of names) {
      const row = readme.split('\n').find((line) => line.startsWith(`| \`${name}\``));
      assert.ok(
        row
          ?.split('|')[2]
          ?.split(',')
          .map((each) => each.trim())
          .includes(scheme),
        `${scheme} ${name}`,
      );
    }
});
