/**
 * Whom to copy from: pure choice among members that answered. Each round asks all who are left, so that load and lag are
 * those of now; who cannot serve is dropped for the rest of the run, with the reason.
 */
import type { SourceHistory } from './local/identity.ts';
import type { SourceInfo } from './source.ts';

export interface Member {
  /** `host:port`. */
  readonly address: string;
  /** Where it is known beforehand. */
  readonly node?: string;
}

/** What a member says of itself when it is asked. */
export interface ProviderInfo extends SourceInfo {
  /** Copies that it is serving now. */
  readonly sessions: number;
}

export interface Asked {
  readonly member: Member;
  /** What it answered, or why it did not. */
  readonly answer: ProviderInfo | Error;
}

export interface Candidate {
  readonly member: Member;
  readonly info: ProviderInfo;
}

export interface Dropped {
  readonly member: Member;
  readonly why: string;
  readonly error?: Error;
}

export interface ChoiceRules {
  /** Who asks: never a provider of itself. */
  readonly self?: { readonly node?: string; readonly store?: string } | undefined;
  /** What a run has begun with: others would not go on with it. */
  readonly history?: SourceHistory | undefined;
  readonly lagRecordsMax: number;
}

export interface Choice {
  /** The first one is asked first. */
  readonly order: readonly Candidate[];
  readonly dropped: readonly Dropped[];
}

export function chooseProvider(asked: readonly Asked[], rules: ChoiceRules): Choice {
  const dropped: Dropped[] = [];
  const able: Candidate[] = [];
  for (const { member, answer } of asked) {
    if (answer instanceof Error) {
      dropped.push({ member, why: answer.message, error: answer });
      continue;
    }
    const why = unfit(member, answer, rules);
    if (why === undefined) able.push({ member, info: answer });
    else dropped.push({ member, why });
  }
  const best = able.reduce((most, { info }) => Math.max(most, info.watermark), 0);
  const order: Candidate[] = [];
  for (const candidate of able) {
    const lag = best - candidate.info.watermark;
    if (lag <= rules.lagRecordsMax) order.push(candidate);
    else
      dropped.push({
        member: candidate.member,
        why: `it is ${lag} records behind, at most ${rules.lagRecordsMax} are taken`,
      });
  }
  return { order: order.sort(byPreference), dropped };
}

function unfit(member: Member, info: ProviderInfo, { self, history }: ChoiceRules): string | undefined {
  const sameNode = self?.node !== undefined && (info.node === self.node || member.node === self.node);
  if (sameNode || (self?.store !== undefined && info.store === self.store)) return 'it is this node itself';
  if (history === undefined) return undefined;
  for (const what of ['cluster', 'generation'] as const)
    if (info[what] !== history[what]) return `it serves ${what} ${String(info[what])}, the copy is of ${history[what]}`;
  return undefined;
}

/** Replicas before the primary, which has writes to serve; then who serves fewest copies; then the newest. */
function byPreference(a: Candidate, b: Candidate): number {
  return (
    Number(a.info.role === 'primary') - Number(b.info.role === 'primary') ||
    a.info.sessions - b.info.sessions ||
    b.info.watermark - a.info.watermark ||
    (a.member.address < b.member.address ? -1 : 1)
  );
}
