/** A part of the tour: one recovery path, shown at work and verified. */
import type { Io } from '../io.ts';

export interface Check {
  /** What must hold, in words that need no manual. */
  readonly what: string;
  readonly ok: boolean;
  /** The figure behind the verdict. */
  readonly figure: string;
}

export function check(what: string, ok: boolean, figure: string): Check {
  return { what, ok, figure };
}

export interface PartResult {
  readonly checks: readonly Check[];
  /** A data directory that may be shown afterwards. */
  readonly dir?: string;
}

export interface TourContext {
  readonly io: Io;
  /** An empty directory of this part. */
  readonly dir: string;
  /** The database to work on. */
  readonly source: { readonly file: string; readonly kind: 'sample' | 'own' };
  /** Says what happens now; a line for people. */
  readonly say: (line: string) => Promise<void>;
  readonly signal: AbortSignal;
}

export interface TourPart {
  readonly name: string;
  /** What it shows, as a sentence. */
  readonly title: string;
  run(context: TourContext): Promise<PartResult>;
}
