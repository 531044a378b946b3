"use client";

import { AssistantRuntimeProvider, useLocalRuntime } from "@assistant-ui/react";
import { useEffect, useState } from "react";
import { Talk } from "@/lib/chat/talk";
import { Thread } from "./Thread";

/** One conversation: read from this device, kept there as it changes. Hidden, its answer goes on. */
export function Conversation({ id, shown }: { id: string; shown: boolean }) {
  const [talk] = useState(() => new Talk(id));
  const runtime = useLocalRuntime(talk.adapter, { adapters: { history: talk.history } });
  useEffect(() => talk.follow(runtime.thread), [talk, runtime]);
  return (
    <AssistantRuntimeProvider runtime={runtime}>{shown && <Thread id={id} talk={talk} />}</AssistantRuntimeProvider>
  );
}
