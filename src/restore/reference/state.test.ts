import assert from 'node:assert/strict';
import { test } from 'node:test';
import { isNostosError } from '../../base/errors.ts';
import { NetworkRestore } from './network-restore.ts';
import { configFor, directoryOf, peerThat } from './peers.fixture.ts';
import { RestoreState } from './types.ts';

type Call = 'start' | 'complete' | 'fail' | 'execute' | 'executeViaDispatcher';

/** The table of the specification: the state after the call, or what the error says. */
const TABLE: Readonly<Record<Call, Readonly<Record<RestoreState, RestoreState | RegExp>>>> = {
  start: {
    NotStarted: 'InProgress',
    InProgress: /already in progress/,
    Completed: /already completed/,
    Failed: /already failed; create a new instance/,
  },
  complete: { NotStarted: /./, InProgress: 'Completed', Completed: /./, Failed: /./ },
  fail: { NotStarted: /./, InProgress: 'Failed', Completed: /./, Failed: /./ },
  execute: { NotStarted: 'Completed', InProgress: /wrong state/, Completed: /wrong state/, Failed: /wrong state/ },
  executeViaDispatcher: {
    NotStarted: 'Completed',
    InProgress: /wrong state/,
    Completed: /wrong state/,
    Failed: /wrong state/,
  },
};

for (const [call, row] of Object.entries(TABLE) as [Call, (typeof TABLE)[Call]][])
  for (const [state, expected] of Object.entries(row) as [RestoreState, RestoreState | RegExp][])
    test(`${call} in ${state}: ${expected instanceof RegExp ? 'refused' : `then ${expected}`}`, async (t) => {
      const viaDispatcher = call === 'executeViaDispatcher';
      const empty = Buffer.from(viaDispatcher ? '0400000000000000' : '00000000', 'hex');
      const peer = await peerThat(t, (socket) => void socket.end(empty), viaDispatcher ? 19 : 4);
      const restore = new NetworkRestore(configFor(peer.port)).withLocalDir(directoryOf(t));
      if (state !== 'NotStarted') restore.start();
      if (state === 'Completed') restore.complete();
      if (state === 'Failed') restore.fail();
      assert.equal(restore.getState(), state);
      restore.updateProgress(11, 2);
      restore.updateElapsed(33);
      const run = async (): Promise<unknown> => restore[call]();
      if (!(expected instanceof RegExp)) {
        await run();
        assert.equal(restore.getState(), expected);
        return;
      }
      await assert.rejects(run(), (error) => isNostosError(error, 'RESTORE_STATE') && expected.test(error.message));
      // A refused call changes nothing.
      assert.deepEqual(restore.getProgress(), { state, bytesTransferred: 11, filesTransferred: 2, elapsed: 33 });
      assert.equal(peer.connections(), 0);
    });

test('progress is a snapshot, and absolute', () => {
  const restore = new NetworkRestore(configFor(1));
  const before = restore.getProgress();
  restore.updateProgress(100, 3);
  restore.updateProgress(50, 1);
  assert.deepEqual(before, { state: RestoreState.NotStarted, bytesTransferred: 0, filesTransferred: 0, elapsed: 0 });
  assert.deepEqual({ ...restore.getProgress(), elapsed: 0 }, { ...before, bytesTransferred: 50, filesTransferred: 1 });
});
