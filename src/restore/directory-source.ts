/** A `RestoreSource` over the files of one plain directory; those whose names are no item names are left out. */
import { closeSync, constants, fstatSync, lstatSync, openSync, readSync, readdirSync } from 'node:fs';
import { join } from 'node:path';
import { diskError } from '../base/disk.ts';
import { NostosError } from '../base/errors.ts';
import { itemPath, parseItemName, type ItemName } from './item-name.ts';
import type { PlanItem, RestoreSource, SourceFile, SourceSession } from './source.ts';

export class DirectorySource implements RestoreSource {
  readonly #dir: string;

  constructor(dir: string) {
    this.#dir = dir;
  }

  async begin(): Promise<SourceSession> {
    return this.#session();
  }

  #session(): SourceSession {
    const items = this.#list().flatMap((fileName): PlanItem[] => {
      const name = itemNameOf(fileName);
      const stats = name && lstatSync(join(this.#dir, fileName), { throwIfNoEntry: false });
      return name !== undefined && stats?.isFile() === true ? [{ name, bytes: stats.size }] : [];
    });
    return {
      plan: {
        kind: 'files',
        cluster: null,
        generation: null,
        store: null,
        node: null,
        term: 0,
        watermark: 0,
        items: items.toSorted((a, b) => (a.name < b.name ? -1 : 1)),
      },
      open: async (name) => openPlain(join(this.#dir, ...itemPath(name)), name),
      tail: () => Promise.resolve([]),
      progress: () => undefined,
      close: () => Promise.resolve(),
    };
  }

  #list(): string[] {
    try {
      return readdirSync(this.#dir);
    } catch (error) {
      throw diskError('list', this.#dir, error);
    }
  }
}

function itemNameOf(fileName: string): ItemName | undefined {
  try {
    return parseItemName(`file/${fileName}`);
  } catch {
    return undefined;
  }
}

/** The file as large as it is now: what it grows by later is not part of it. */
function openPlain(path: string, name: ItemName): SourceFile {
  let fd: number;
  try {
    fd = openSync(path, constants.O_RDONLY | constants.O_NOFOLLOW);
  } catch (error) {
    throw diskError('open', path, error);
  }
  const bytes = fstatSync(fd).size;
  return {
    bytes,
    attributes: {},
    read(target, offset) {
      for (let done = 0; done < target.length;) {
        const count = readSync(fd, target, done, target.length - done, offset + done);
        if (count === 0)
          throw new NostosError(
            'IO_FAILED',
            `${name} became shorter while it was read: ${offset + done} bytes, ${bytes} when it was opened; run the restore again`,
            { details: { item: name, bytes, shortAt: offset + done } },
          );
        done += count;
      }
    },
    close() {
      closeSync(fd);
      return Promise.resolve();
    },
  };
}
