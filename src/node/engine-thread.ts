/** The engine's thread. */
import { parentPort, workerData } from 'node:worker_threads';
import { assert } from '../base/assert.ts';
import { GROWN_BYTES_BACKGROUND, collectIfGrown } from '../base/collect.ts';
import { serializeError } from '../base/errors.ts';
import type { EngineStart } from './engine-protocol.ts';
import { serveEngine, type EngineServing } from './engine-server.ts';

assert(parentPort !== null, 'the engine runs in a worker thread');
const serving = workerData as EngineServing;
try {
  parentPort.postMessage({ opened: await serveEngine(serving) } satisfies EngineStart);
  collectIfGrown(GROWN_BYTES_BACKGROUND); // a log that was read leaves much behind
} catch (error) {
  parentPort.postMessage({ failed: serializeError(error) } satisfies EngineStart);
  serving.port.close();
}
