/** What Nostos needs of the runtime, checked before anything else. */
import { readFileSync } from 'node:fs';
import { NostosError } from '../base/errors.ts';

export const VERSION = (
  JSON.parse(readFileSync(new URL('../../package.json', import.meta.url), 'utf8')) as { version: string }
).version;

const SQLITE_MIN = [3, 53, 2] as const;

export function assertRuntime(): void {
  const sqlite = (process.versions['sqlite'] ?? '0.0.0').split('.').map(Number);
  for (const [index, min] of SQLITE_MIN.entries()) {
    const found = sqlite[index] ?? 0;
    if (found > min) return;
    if (found < min)
      throw new NostosError(
        'UNSUPPORTED_RUNTIME',
        `Nostos needs Node.js 24.19 or 26.4 or newer (SQLite ${SQLITE_MIN.join('.')}), this is ${process.version} with SQLite ${process.versions['sqlite'] ?? 'none'}: ` +
          'older ones let a primary commit what no replica can apply',
      );
  }
}
