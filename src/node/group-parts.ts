/** Puts a member of a group together; loaded only where a node is one. */
import { join } from 'node:path';
import type { TenantId } from '../base/brands.ts';
import type { Clock } from '../base/clock.ts';
import { systemDisk } from '../base/disk.ts';
import type { Limits } from '../base/limits.ts';
import type { CommittedRecord } from '../log/commit-log.ts';
import { RecordKind } from '../log/record.ts';
import type { RollbackNotice } from '../rollback/types.ts';
import type { Catalog } from '../store/catalog.ts';
import type { Maintenance } from '../store/maintenance.ts';
import type { OpenTenants } from '../store/open-tenants.ts';
import type { CatalogLog } from './catalog-log.ts';
import type { EngineClient } from './engine-client.ts';
import { GroupMember } from './group-member.ts';
import { GroupRollback } from './group-rollback.ts';
import type { NodeIdentity } from './node-file.ts';

export interface MemberParts {
  readonly engine: EngineClient;
  readonly catalog: Catalog;
  readonly catalogLog: CatalogLog;
  readonly tenants: OpenTenants;
  readonly maintenance: Maintenance;
  readonly clock: Clock;
  readonly dir: string;
  readonly identity: NodeIdentity;
  readonly limits: Limits;
  /** Of a tenant that was dropped. */
  readonly removeFiles: (id: TenantId) => Promise<void>;
}

export function makeMember(parts: MemberParts): GroupMember {
  const { catalogLog, tenants, removeFiles, dir, identity } = parts;
  const applyCatalog = async (record: CommittedRecord): Promise<void> => {
    if (record.kind !== RecordKind.tenantDrop) return catalogLog.follow(record, async () => {});
    await tenants.closed(record.tenant, () => catalogLog.follow(record, () => removeFiles(record.tenant)));
  };
  const onNotice = (notice: RollbackNotice): void =>
    member.note(notice.kind === 'rolled-back' ? notice.kind : 'rollback-failed', describe(notice));
  const rollback = new GroupRollback(
    { ...parts, disk: systemDisk, onNotice },
    { dir: join(dir, 'rollback'), identity },
  );
  const member: GroupMember = new GroupMember({ ...parts, applyCatalog, rollback });
  return member;
}

function describe(notice: RollbackNotice): string {
  if (notice.kind === 'rolled-back') {
    const { plan, file } = notice;
    return `${file.records} records above LSN ${plan.common.lsn}, ${file.acknowledged} of them acknowledged, are kept in ${file.path}`;
  }
  return `${notice.code}: ${notice.reason}`;
}
