import { useEffect, useRef, type RefObject } from "react";

/** For a dialog that is modal for as long as it is there; the browser keeps the focus in it, and gives it back. */
export function useModal(): RefObject<HTMLDialogElement | null> {
  const dialog = useRef<HTMLDialogElement>(null);
  useEffect(() => {
    const shown = dialog.current;
    if (shown && !shown.open) shown.showModal();
  }, []);
  return dialog;
}
