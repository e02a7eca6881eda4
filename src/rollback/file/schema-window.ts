/**
 * The schemas that a reader still knows. Both sides forget the oldest one in the same way, and the writer repeats what it
 * has forgotten, so memory does not grow with the number of tenants in a tail.
 */
import type { TenantSchema } from './format.ts';

const SCHEMAS_MAX = 64;

export class SchemaWindow {
  readonly #schemas = new Map<string, TenantSchema>();

  get(tenant: number, schemaVersion: number): TenantSchema | undefined {
    return this.#schemas.get(`${tenant}.${schemaVersion}`);
  }

  add(schema: TenantSchema): void {
    this.#schemas.set(`${schema.tenant}.${schema.schemaVersion}`, schema);
    const [oldest] = this.#schemas.keys();
    if (this.#schemas.size > SCHEMAS_MAX && oldest !== undefined) this.#schemas.delete(oldest);
  }
}
