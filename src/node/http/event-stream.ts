/** The same answers as `operation-stream.ts`, as server-sent events: browsers reconnect by themselves, with the last id. */
import type { ServerResponse } from 'node:http';
import { once } from 'node:events';
import { serializeError } from '../../base/errors.ts';
import { stringifyJson } from '../json-values.ts';
import type { OperationContext } from '../operations.ts';

export const EVENT_STREAM = 'text/event-stream';

function event(kind: string, data: unknown, id?: string): string {
  return `event: ${kind}\n${id === undefined ? '' : `id: ${id}\n`}data: ${stringifyJson(data)}\n\n`;
}

/** The position of a change or a record, from which a reader goes on. */
function positionOf(item: unknown): string | undefined {
  const position = (item as { position?: unknown } | null)?.position;
  return typeof position === 'string' ? position : undefined;
}

export async function respondWithEvents(
  response: ServerResponse,
  signal: AbortSignal,
  run: (context: OperationContext) => Promise<unknown>,
): Promise<void> {
  response.writeHead(200, { 'content-type': EVENT_STREAM, 'cache-control': 'no-store' }).flushHeaders();
  const write = async (text: string): Promise<void> => {
    if (!response.destroyed && !response.write(text)) await once(response, 'drain', { signal }).catch(() => {});
  };
  const context: OperationContext = {
    signal,
    onProgress: () => {},
    emit: async (item) => {
      signal.throwIfAborted();
      await write(event('item', item, positionOf(item)));
    },
  };
  try {
    await write(event('result', await run(context)));
  } catch (error) {
    await write(event('error', serializeError(error)));
  }
  response.end();
}
