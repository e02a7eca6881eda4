import type { TourPart } from './part.ts';

/** In the order in which the tour shows them. A part is loaded when it runs: other verbs start without it. */
export const PARTS: readonly TourPart[] = [
  {
    name: 'crash',
    title: 'A process is killed in the middle of its writes, and nothing that it acknowledged is lost.',
    run: async (context) => (await import('./crash.ts')).crash(context),
  },
  {
    name: 'restore',
    title: 'A node’s directory is destroyed and brought back from a copy, by a process that is killed halfway.',
    run: async (context) => (await import('./restore.ts')).restore(context),
  },
  {
    name: 'rollback',
    title:
      'A primary is cut off and killed; another one goes on, and what only the old one had comes back from a file.',
    run: async (context) => (await import('./rollback.ts')).rollback(context),
  },
  {
    name: 'backup',
    title: 'A table is dropped and a person forgotten; a restore to the moment before brings back only the table.',
    run: async (context) => (await import('./backup.ts')).backup(context),
  },
];
