/** A process that writes a tail of so many megabytes and reads it back, and prints the peak of its memory in MiB. */
import { systemDisk } from '../../base/disk.ts';
import { readFileRecords } from './reader.ts';
import { batched, changesetRecord, headerOf, makeTail, writerDeps, type MadeRecord } from './tail.fixture.ts';
import { writeRollbackFile } from './writer.ts';

const [dir = '.', megabytes = '1'] = process.argv.slice(2);
const RECORD_BYTES = 64 * 1024;
const count = (Number(megabytes) * 1024 * 1024) / RECORD_BYTES;

function* records(): Generator<MadeRecord> {
  for (let i = 0; i < count; i++) yield { payload: changesetRecord(Buffer.alloc(RECORD_BYTES, i & 0xff)) };
}

const { path } = await writeRollbackFile(writerDeps(systemDisk, { dir }), headerOf(count), () =>
  batched(makeTail(records())),
);
let read = 0;
for await (const { record } of readFileRecords(systemDisk, path)) read += record.lsn > 0 ? 1 : 0;
const peakMiB = process.resourceUsage().maxRSS / 1024;
process.stdout.write(JSON.stringify({ read, fileBytes: systemDisk.size(path), peakMiB }));
