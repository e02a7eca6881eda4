/** The other end of `CallThread`: answers calls in a worker thread. */
import { parentPort } from 'node:worker_threads';
import { assert } from '../base/assert.ts';
import { GROWN_BYTES_BACKGROUND, collectIfGrown } from '../base/collect.ts';
import { serializeError } from '../base/errors.ts';
import type { ThreadCall, ThreadReply } from './threads.ts';

export type ThreadMethods = Readonly<Record<string, (input: never, progress: (value: unknown) => void) => unknown>>;

export function serveThread(methods: ThreadMethods): void {
  assert(parentPort !== null, 'this runs in a worker thread');
  const port = parentPort;
  const reply = (message: ThreadReply): void => port.postMessage(message);
  const answer = async ({ id, method, input }: ThreadCall): Promise<void> => {
    try {
      const run = methods[method];
      assert(run !== undefined, `no method ${method}`);
      reply({ id, output: await run(input as never, (progress) => reply({ id, progress })) });
    } catch (error) {
      reply({ id, error: serializeError(error) });
    }
    collectIfGrown(GROWN_BYTES_BACKGROUND);
  };
  port.on('message', (call: ThreadCall) => void answer(call));
}
