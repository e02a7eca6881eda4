/** `minInSync` is a majority of the members unless somebody said otherwise, and then stays what was said. */
import type { GroupRecord } from '../coordination/coordinator.ts';
import type { MemberChange } from '../replication/effects.ts';

export function memberChange(
  { members, minInSync }: Pick<GroupRecord, 'members' | 'minInSync'>,
  asked: MemberChange,
): MemberChange {
  if (asked.minInSync !== undefined || minInSync !== majority(members.length)) return asked;
  const joins = asked.add !== undefined && !members.includes(asked.add);
  const goes = asked.remove !== undefined && members.includes(asked.remove);
  return { ...asked, minInSync: majority(members.length + Number(joins) - Number(goes)) };
}

export function majority(members: number): number {
  return Math.floor(members / 2) + 1;
}
