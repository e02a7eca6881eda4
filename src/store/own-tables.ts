/** The tables that Nostos keeps inside a tenant's own file. All other names with this prefix are refused. */
export const RESERVED_PREFIX = 'nostos_';

/** Answers of idempotent writes: captured and replicated like the tables of the user. */
export const RESULTS_TABLE = 'nostos_results';

/** They describe one node's copy rather than its content: never captured, fingerprinted, exported or imported. */
export const LOCAL_TABLES: readonly string[] = ['nostos_meta', 'nostos_fingerprint', 'nostos_shapes'];

export const OWN_TABLES: readonly string[] = [...LOCAL_TABLES, RESULTS_TABLE];

/** Every name that Nostos itself uses in a tenant file. */
export const OWN_OBJECTS: readonly string[] = [...OWN_TABLES, 'nostos_results_at'];

/** Whether changes of a table stay out of the log: they are derived, or belong to one file. */
export const isUnreplicated = (table: string): boolean =>
  table.startsWith('sqlite_stat') || LOCAL_TABLES.includes(table);
