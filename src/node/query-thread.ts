/** A reader thread: runs one statement at a time on read-only connections, a few of which stay open. */
import { DEFAULT_LIMITS } from '../base/limits.ts';
import { NostosError } from '../base/errors.ts';
import { Connection } from '../store/connection.ts';
import { Statements } from '../store/statements.ts';
import type { Int64Mode, Row, SqlParameters } from '../store/values.ts';
import { serveThread } from './thread-server.ts';

export interface QueryInput {
  readonly path: string;
  readonly statement: string;
  readonly parameters: SqlParameters;
  readonly int64: Int64Mode;
  readonly rowsMax: number;
}

const CONNECTIONS_MAX = 8;
const connections = new Map<string, Connection>();

function connect(path: string): Connection {
  let connection = connections.get(path);
  connections.delete(path);
  connection ??= new Connection(path, { role: 'reader', statementCacheMax: DEFAULT_LIMITS.statementCacheMax });
  connections.set(path, connection);
  if (connections.size > CONNECTIONS_MAX) {
    const [oldest, idle] = connections.entries().next().value as [string, Connection];
    connections.delete(oldest);
    idle.close();
  }
  return connection;
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

serveThread({
  query,
  forget: ({ path }: { path: string }) => {
    connections.get(path)?.close();
    connections.delete(path);
  },
});
