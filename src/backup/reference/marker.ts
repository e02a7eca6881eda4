/** The reference's: its content is the id of the snapshot. Nobody may open a directory that has it. */
export const RESTORE_MARKER = '.restore-in-progress';
