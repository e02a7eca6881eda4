/** Modules of Node that are loaded at their first use. */
import type * as Http from 'node:http';
import type * as Tls from 'node:tls';

/**
 * An `import` of it takes 16 MiB, since that reads every export, and one of them is a getter that loads a whole client for
 * WebSockets; asked for like this it takes 4.
 */
export const nodeHttp = (): typeof Http => process.getBuiltinModule('node:http');

/** Takes 8 MiB, which who uses none need not have. */
export const nodeTls = (): typeof Tls => process.getBuiltinModule('node:tls');
