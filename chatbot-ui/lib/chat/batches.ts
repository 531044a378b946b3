/**
 * The items of `source` in batches, each as soon as it can be: at least `pause` ms after the one before, and without
 * waiting for items that are yet to come.
 */
export async function* batches<T>(source: AsyncGenerator<T>, pause: number): AsyncGenerator<T[]> {
  let next = source.next();
  let rested = Promise.resolve();
  try {
    for (;;) {
      const first = await next;
      if (first.done) return;
      const batch = [first.value];
      next = source.next();
      for (;;) {
        // An error is thrown where the next batch begins.
        const more = await Promise.race([rested, next.catch(() => undefined)]);
        if (!more || more.done) break;
        batch.push(more.value);
        next = source.next();
      }
      rested = new Promise((resolve) => setTimeout(resolve, pause));
      yield batch;
    }
  } finally {
    next.catch(() => undefined);
    source.return(undefined).catch(() => undefined);
  }
}
