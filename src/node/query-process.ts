/**
 * A reader process: runs one statement at a time on read-only connections, a few of which stay open. A process rather
 * than a thread, since SQLite in a thread cannot be interrupted: a runaway statement would hold its thread, and with it
 * the exit of the whole program, for ever; a process is killed (ADR 0003).
 */
import { Worker } from 'node:worker_threads';
import { DEFAULT_LIMITS } from '../base/limits.ts';
import { NostosError, serializeError } from '../base/errors.ts';
import { Connection } from '../store/connection.ts';
import { Statements } from '../store/statements.ts';
import type { Int64Mode, Row, SqlParameters } from '../store/values.ts';
import type { ProcessCall, ProcessReply } from './call-process.ts';

export interface QueryInput {
  readonly path: string;
  readonly statement: string;
  readonly parameters: SqlParameters;
  readonly int64: Int64Mode;
  readonly rowsMax: number;
}

const CONNECTIONS_MAX = 8;
/** A thread of this process looks whether the parent still lives, also while a statement runs. */
const WATCH = `
  const parent = process.ppid;
  setInterval(() => process.ppid === parent || process.kill(process.pid, 'SIGKILL'), 500);
`;
const connections = new Map<string, Connection>();

function connect(path: string): Connection {
  let connection = connections.get(path);
  connections.delete(path);
  connection ??= new Connection(path, { role: 'reader', statementCacheMax: DEFAULT_LIMITS.statementCacheMax });
  connections.set(path, connection);
  if (connections.size > CONNECTIONS_MAX) forget(connections.keys().next().value as string);
  return connection;
}

function forget(path: string): void {
  connections.get(path)?.close();
  connections.delete(path);
}

function query({ path, statement, parameters, int64, rowsMax }: QueryInput): Row[] {
  const rows: Row[] = [];
  for (const row of new Statements(connect(path), int64).iterate(statement, parameters)) {
    if (rows.length >= rowsMax)
      throw new NostosError(
        'INVALID_ARGUMENT',
        `the query has more than ${rowsMax} rows; add a LIMIT, or read page by page`,
      );
    rows.push(row);
  }
  return rows;
}

function answer({ id, method, input }: ProcessCall): ProcessReply {
  try {
    if (method === 'query') return { id, output: query(input as QueryInput) };
    forget((input as { path: string }).path);
    return { id, output: undefined };
  } catch (error) {
    return { id, error: serializeError(error) };
  }
}

new Worker(WATCH, { eval: true, stdout: false, stderr: false }).unref();
process.on('message', (call: ProcessCall) => process.send?.(answer(call)));
process.on('disconnect', () => process.exit(0));
for (const signal of ['SIGINT', 'SIGTERM'] as const) process.on(signal, () => {}); // the parent decides when to end
