import assert from 'node:assert/strict';
import { test, type TestContext } from 'node:test';
import { isNostosError } from '../base/errors.ts';
import { failsWith } from '../testing/channel-compliance.ts';
import { ECHO, handler, handOver, startDispatcher } from '../testing/wire.fixture.ts';
import { connectToService } from './connect.ts';
import { negotiateClient, negotiateServer, type Versions } from './negotiate.ts';

type Range = readonly [number, number];

function versions([least, greatest]: Range): Versions {
  return { service: 'THING', least, greatest };
}

async function negotiate(t: TestContext, client: Range, server: Range) {
  const { service, channel } = handOver('THING');
  const { address } = await startDispatcher(t, [service]);
  const ours = await connectToService(address, 'THING');
  return Promise.allSettled([
    negotiateClient(ours, versions(client)),
    channel.then((theirs) => negotiateServer(theirs, versions(server))),
  ]);
}

const agreed: readonly (readonly [Range, Range, number])[] = [
  [[1, 1], [1, 1], 1],
  [[1, 3], [2, 5], 3],
  [[4, 65_535], [1, 4], 4],
];

for (const [client, server, version] of agreed)
  test(`versions ${client.join('-')} and ${server.join('-')} speak ${version}`, async (t) => {
    const results = await negotiate(t, client, server);
    assert.deepEqual(
      results.map((result) => result.status === 'fulfilled' && result.value),
      [version, version],
    );
  });

test('without a common version both sides name both ranges', async (t) => {
  const [client, server] = await negotiate(t, [1, 2], [3, 4]);
  for (const [result, ours, theirs] of [
    [client, { least: 1, greatest: 2 }, { least: 3, greatest: 4 }],
    [server, { least: 3, greatest: 4 }, { least: 1, greatest: 2 }],
  ] as const) {
    assert.ok(result.status === 'rejected' && isNostosError(result.reason, 'VERSION_MISMATCH'));
    assert.deepEqual(result.reason.details, { service: 'THING', ours, theirs });
    assert.match(result.reason.message, /versions 1 to 2.*versions 3 to 4|versions 3 to 4.*versions 1 to 2/);
  }
});

test('a peer that answers something else speaks no version', async (t) => {
  for (const answer of ['', 'NSTV', 'HTTP/1.1 400 Bad Request']) {
    const foreign = handler('THING', async (channel) => {
      await channel.receive(5_000);
      await channel.send(Buffer.from(answer));
    });
    const { address } = await startDispatcher(t, [foreign]);
    const channel = await connectToService(address, 'THING');
    await assert.rejects(
      negotiateClient(channel, versions([1, 2])),
      (error) => isNostosError(error, 'VERSION_MISMATCH') && error.details['theirs'] === null,
    );
    channel.close();
  }
});

test('a peer that says nothing, or does not know the service', async (t) => {
  const silent = handOver('THING');
  const { address } = await startDispatcher(t, [silent.service, ECHO]);
  const channel = await connectToService(address, 'THING');
  await assert.rejects(negotiateClient(channel, versions([1, 1]), { timeoutMs: 30 }), failsWith('NETWORK_TIMEOUT'));
  const absent = await connectToService(address, 'OTHER');
  await assert.rejects(negotiateClient(absent, versions([1, 1])), failsWith('CHANNEL_CLOSED'));
  await assert.rejects(negotiateClient(absent, versions([2, 1])), failsWith('INVALID_ARGUMENT'));
  channel.close();
});
