/** The archive is kept per generation, and a history may go through several: a restore from backup begins a new one. */
import type { Lsn } from '../../base/brands.ts';
import type { ChainPoint } from '../../log/chain.ts';
import type { TermEntry } from '../../log/terms.ts';
import type { ArchiveRange } from './archive.ts';

/** The ranges that lead from behind one point through another one, by the term table of the second. */
export function rangesOf(
  terms: readonly TermEntry[],
  span: { readonly after: ChainPoint; readonly through: ChainPoint } | undefined,
): ArchiveRange[] {
  if (span === undefined || span.after.lsn >= span.through.lsn) return [];
  const starts = terms.filter(({ generation, previous }) => generation !== previous.generation);
  const ranges: ArchiveRange[] = [];
  let [to, generation] = [span.through.lsn, span.through.generation];
  while (to > span.after.lsn) {
    // Where this generation begins, and whence it came; before the first known start there is only the one.
    const start = starts.findLast((entry) => entry.generation === generation && entry.firstLsn <= to);
    const from = Math.max(span.after.lsn + 1, start?.firstLsn ?? 0) as Lsn;
    ranges.unshift({ generation, from, to });
    if (start === undefined) break;
    [to, generation] = [(start.firstLsn - 1) as Lsn, start.previous.generation];
  }
  return ranges;
}
