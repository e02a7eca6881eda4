/** A promise of the design that does not hold. */
export class Violation extends Error {
  override readonly name = 'Violation';
}
