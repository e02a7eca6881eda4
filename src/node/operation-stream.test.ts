import assert from 'node:assert/strict';
import { getEventListeners, once } from 'node:events';
import { createServer, type ServerResponse } from 'node:http';
import { connect, type AddressInfo } from 'node:net';
import { test } from 'node:test';
import { disconnectSignal } from './operation-stream.ts';

test('the signal of an answer follows the client and the server, and an answer that is out holds nothing of either', async () => {
  const closing = new AbortController();
  const server = createServer().listen(0, '127.0.0.1');
  await once(server, 'listening');
  const { port } = server.address() as AddressInfo;
  const ask = async (): Promise<{ response: ServerResponse; signal: AbortSignal; leave: () => void }> => {
    const socket = connect(port, '127.0.0.1').on('error', () => {});
    socket.write('GET / HTTP/1.1\r\nhost: x\r\n\r\n');
    const [, response] = (await once(server, 'request')) as [unknown, ServerResponse];
    return { response, signal: disconnectSignal(response, closing.signal), leave: () => socket.destroy() };
  };
  const held = (): number => getEventListeners(closing.signal, 'abort').length;

  const answered = await ask();
  assert.equal(held(), 1);
  const out = once(answered.response, 'close');
  answered.response.end('done');
  await out;
  assert.deepEqual([answered.signal.aborted, held()], [false, 0]);
  answered.leave();

  const left = await ask();
  const gone = once(left.signal, 'abort');
  left.leave();
  await gone;
  assert.match(String(left.signal.reason), /the client went away/);
  assert.equal(held(), 0);

  const waiting = await ask();
  closing.abort(new Error('closing'));
  assert.equal(waiting.signal.reason, closing.signal.reason);
  assert.equal((await ask()).signal.aborted, true, 'one that comes late');
  server.closeAllConnections();
  server.close();
});
