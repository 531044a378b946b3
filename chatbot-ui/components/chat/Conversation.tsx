"use client";

import { AssistantRuntimeProvider, useLocalRuntime } from "@assistant-ui/react";
import { useEffect, useState } from "react";
import { ChatThread } from "@/lib/chat/thread";
import { Thread } from "./Thread";

/** One conversation: read from this device, kept there as it changes. Hidden, its answer goes on. */
export function Conversation({ id, shown }: { id: string; shown: boolean }) {
  const [chatThread] = useState(() => new ChatThread(id));
  const runtime = useLocalRuntime(chatThread.adapter, { adapters: { history: chatThread.history } });
  useEffect(() => chatThread.follow(runtime.thread), [chatThread, runtime]);
  return (
    <AssistantRuntimeProvider runtime={runtime}>{shown && <Thread id={id} chatThread={chatThread} />}</AssistantRuntimeProvider>
  );
}
