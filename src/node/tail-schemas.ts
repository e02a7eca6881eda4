/** What the tables of a tail's tenants are called, for its file: bounded, with the tenants that were asked for last. */
import type { TenantId } from '../base/brands.ts';
import type { TenantSchema } from '../rollback/file/format.ts';
import { Connection } from '../store/connection.ts';
import { shapesFrom } from '../store/replay.ts';
import type { SchemaShape } from '../store/schema-shape.ts';
import { readShapes, readTenantMeta } from '../store/tenant-file.ts';

/** Tenants that are remembered: to ask one again is to open its file again. */
const TENANTS_KEPT_MAX = 1_024;

export interface KnownTenant {
  readonly uuid: string;
  readonly name: string;
  /** By schema version. */
  readonly shapes: ReadonlyMap<number, SchemaShape>;
}

/** As the file itself says, in which the newest versions may not be yet; undefined where it cannot be read. */
export function tenantInFile(path: string): KnownTenant | undefined {
  try {
    using connection = new Connection(path, { role: 'reader', statementCacheMax: 1 });
    const meta = readTenantMeta(connection);
    return meta === undefined ? undefined : { ...meta.identity, shapes: shapesFrom(readShapes(connection)) };
  } catch {
    return undefined; // rows are kept without the names of their columns
  }
}

export class SchemaMemory {
  /** The one used last is the last; undefined where nobody can tell. */
  readonly #known = new Map<TenantId, KnownTenant | undefined>();

  has(tenant: TenantId): boolean {
    return this.#known.has(tenant);
  }

  /** `together`: so many are used at a time. */
  put(tenant: TenantId, known: KnownTenant | undefined, together = 1): void {
    this.#known.delete(tenant);
    this.#known.set(tenant, known);
    for (const oldest of this.#known.keys()) {
      if (this.#known.size <= Math.max(TENANTS_KEPT_MAX, together)) break;
      this.#known.delete(oldest);
    }
  }

  get(tenant: TenantId): KnownTenant | undefined {
    return this.#known.get(tenant);
  }

  find(tenant: TenantId, schemaVersion: number): TenantSchema | undefined {
    const known = this.#known.get(tenant);
    const shape = known?.shapes.get(schemaVersion);
    if (known === undefined || shape === undefined) return undefined;
    const { uuid, name } = known;
    return { tenant, schemaVersion, uuid, name, tables: [...shape.tables.values()] };
  }
}
