import type { Command } from 'commander';
import { stringifyJson } from '../node/json-values.ts';
import { print, type Io } from './io.ts';
import { style } from './render.ts';
import { verb, wholeNumber, withNode, type VerbOptions } from './verb.ts';

interface LogOptions extends VerbOptions {
  readonly from?: number;
  readonly to?: number;
  readonly tenant?: string;
  readonly limit?: number;
  readonly follow?: true;
}

/** A record as the operation `log` emits it. */
interface LogItem {
  readonly position: string;
  readonly timeMs: number;
  readonly kind: string;
  readonly tenant: number;
  readonly payloadBytes: number;
  readonly hash: string;
}

const HEADING = 'lsn        term  time                      kind             tenant       bytes  hash';

/** A stream cannot wait for its widest cell: the columns are fixed. */
function line(item: LogItem): string {
  const [, term, lsn] = item.position.split(':');
  return [
    lsn!.padEnd(9),
    term!.padStart(5),
    ` ${new Date(item.timeMs).toISOString()}`,
    item.kind.padEnd(15),
    String(item.tenant || '-').padStart(7),
    String(item.payloadBytes).padStart(10),
    item.hash.slice(0, 16),
  ].join('  ');
}

export function logVerb(io: Io): Command {
  return verb('log', {
    summary: 'List the records of the log, oldest first.',
    description: 'With --json one record per line. The hash of each record covers all before it.',
    examples: [
      ['nostos log --limit 20', 'the first twenty that the log still holds'],
      ['nostos log --tenant acme --from 1000', 'of one tenant, from record 1000'],
      ['nostos log --follow --json', 'go on with what is written, one JSON document per line'],
    ],
  })
    .option('--from <lsn>', 'first record', wholeNumber('--from'))
    .option('--to <lsn>', 'last record', wholeNumber('--to'))
    .option('--tenant <name>', 'only records of this tenant')
    .option('--limit <count>', 'at most so many', wholeNumber('--limit'))
    .option('--follow', 'wait for more at the end; Ctrl-C ends it')
    .action(async (options: LogOptions) => {
      const { from, to, tenant, limit, follow = false } = options;
      await withNode(io, options, async (node) => {
        if (!options.json) await print(io.stdout, `${style(io, 'bold', HEADING)}\n`);
        const onItem = (item: unknown): Promise<void> =>
          print(io.stdout, `${options.json ? stringifyJson(item) : line(item as LogItem)}\n`);
        await node.call('log', { from, to, tenant, limit, follow }, { onItem });
      });
    });
}
