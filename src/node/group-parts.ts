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
import { decodeTenantReset } from '../store/payload.ts';
import type { CatalogLog } from './catalog-log.ts';
import type { EngineClient } from './engine-client.ts';
import { GroupMember } from './group-member.ts';
import { GroupRollback } from './group-rollback.ts';
import type { NodeIdentity } from './node-file.ts';
import { RejoinDriver, type RejoinDriverOptions } from './rejoin-driver.ts';
import type { RejoinFile } from './rejoin-file.ts';

/** What a node knows of its group beforehand. */
export interface GroupPlace extends Pick<RejoinDriverOptions, 'coordinator' | 'group' | 'tls' | 'restoreFrom'> {
  readonly rejoinFile: RejoinFile;
}

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
  /** Called when a reign has begun. */
  readonly onLead: () => void;
}

export function makeMember(parts: MemberParts, { rejoinFile, ...place }: GroupPlace): GroupMember {
  const { catalogLog, tenants, removeFiles, dir, identity, engine, clock, limits } = parts;
  const applyCatalog = async (record: CommittedRecord): Promise<void> => {
    if (record.kind === RecordKind.tenantCreate) return catalogLog.follow(record, async () => {});
    const gone = (then: () => void): Promise<void> =>
      tenants.closed(record.tenant, () =>
        catalogLog.follow(record, async () => {
          await removeFiles(record.tenant);
          then();
        }),
      );
    if (record.kind !== RecordKind.tenantReset) return gone(() => {});
    const by = decodeTenantReset(record.payload);
    await tenants.closed(by.tenant, () => gone(() => catalogLog.rename(by)));
  };
  const onNotice = (notice: RollbackNotice): void =>
    member.note(notice.kind === 'rolled-back' ? notice.kind : 'rollback-failed', describe(notice));
  const rollback = new GroupRollback(
    { ...parts, disk: systemDisk, onNotice },
    { dir: join(dir, 'rollback'), identity },
  );
  const rejoin = (of: GroupMember): RejoinDriver =>
    new RejoinDriver(
      { engine, file: rejoinFile, clock, handover: () => of.handover(), note: (kind, text) => of.note(kind, text) },
      { ...place, identity, limits },
    );
  const member: GroupMember = new GroupMember({ ...parts, applyCatalog, rollback, rejoin });
  return member;
}

function describe(notice: RollbackNotice): string {
  if (notice.kind === 'rolled-back') {
    const { plan, file } = notice;
    return `${file.records} records above LSN ${plan.common.lsn}, ${file.acknowledged} of them acknowledged, are kept in ${file.path}`;
  }
  return `${notice.code}: ${notice.reason}`;
}
