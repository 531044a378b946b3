// The Vercel AI SDK: a question, a stream, an object by a schema, a tool.
import assert from "node:assert";
import { createOpenAICompatible } from "@ai-sdk/openai-compatible";
import { generateObject, generateText, streamText, tool } from "ai";
import { z } from "zod";

const provider = createOpenAICompatible({
  name: "swarm", baseURL: process.env.OPENAI_BASE_URL, supportsStructuredOutputs: true, includeUsage: true,
});
const asked = { model: provider(process.env.MODEL), prompt: "What is the capital of France?", temperature: 0, maxRetries: 0 };
const { text } = await generateText(asked);
assert(text.includes("Paris"));
let streamed = "";
for await (const piece of streamText(asked).textStream) streamed += piece;
assert.equal(streamed, text);
const city = z.object({ city: z.enum(["Paris", "Rome"]) });
assert(["Paris", "Rome"].includes((await generateObject({ ...asked, schema: city })).object.city));
const tools = { visit: tool({ description: "Visit a city", inputSchema: city }) };
const { toolCalls } = await generateText({ ...asked, tools, toolChoice: { type: "tool", toolName: "visit" } });
assert(["Paris", "Rome"].includes(toolCalls[0].input.city));
console.log(text);
