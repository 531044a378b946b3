import { useEffect, useState } from "react";

const AGAIN = 3000; // ms between two tries

/**
 * A part of the page that is fetched when it is needed first: a hook that gives it, or undefined until it is there. What
 * cannot be fetched, because the gateway is away, is asked for again.
 */
export function lazyModule<T extends object>(load: () => Promise<T>): () => T | undefined {
  let found: T | undefined;
  let loading: Promise<T> | undefined;
  return function useLater() {
    const [part, setPart] = useState(found);
    useEffect(() => {
      if (part) return;
      let over = false;
      let timer: ReturnType<typeof setTimeout>;
      const look = async () => {
        try {
          found = await (loading ??= load());
          if (!over) setPart(found);
        } catch {
          loading = undefined;
          if (!over) timer = setTimeout(look, AGAIN);
        }
      };
      void look();
      return () => {
        over = true;
        clearTimeout(timer);
      };
    }, [part]);
    return part;
  };
}
