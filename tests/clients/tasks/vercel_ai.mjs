// The Vercel AI SDK: text, streams, objects by a schema, tools over several steps, embeddings, errors.
import assert from "node:assert";
import { createOpenAICompatible } from "@ai-sdk/openai-compatible";
import { APICallError, embedMany, generateObject, generateText, stepCountIs, streamObject, streamText, tool } from "ai";
import { z } from "zod";

const provider = createOpenAICompatible({
  name: "swarm", baseURL: process.env.OPENAI_BASE_URL, supportsStructuredOutputs: true, includeUsage: true,
});
const model = provider(process.env.MODEL);
const asked = { model, prompt: "What is the capital of France?", temperature: 0, maxRetries: 0 };
const { text, usage } = await generateText(asked);
assert(text.includes("Paris"));
assert.equal(usage.outputTokens, 8);
const stream = streamText(asked);
let streamed = "";
for await (const piece of stream.textStream) streamed += piece;
assert.equal(streamed, text);
assert.equal((await stream.usage).outputTokens, 8);

const city = z.object({ city: z.enum(["Paris", "Rome"]) });
const cities = ["Paris", "Rome"];
assert(cities.includes((await generateObject({ ...asked, schema: city })).object.city));
const grown = streamObject({ ...asked, schema: city });
let last;
for await (const part of grown.partialObjectStream) last = part;
assert(cities.includes(last.city));
const visit = tool({ description: "Visit a city", inputSchema: city, execute: async () => "It rains there." });
const chosen = { type: "tool", toolName: "visit" };
const { steps } = await generateText({
  ...asked, tools: { visit }, toolChoice: chosen, stopWhen: stepCountIs(2),
  prepareStep: ({ stepNumber }) => (stepNumber ? { toolChoice: "none" } : {}), maxOutputTokens: 60,
});
assert(cities.includes(steps[0].toolCalls[0].input.city));
assert.equal(steps.length, 2);

const { embeddings } = await embedMany({ model: provider.textEmbeddingModel(process.env.MODEL), values: ["a", "b"] });
assert.equal(embeddings.length, 2);
const unknown = (error) => APICallError.isInstance(error) && error.statusCode === 404;
await assert.rejects(generateText({ ...asked, model: provider("nobody") }), unknown);
const leaving = new AbortController();
const long = streamText({ ...asked, prompt: "Count to a thousand.", abortSignal: leaving.signal });
for await (const _ of long.textStream) leaving.abort();
console.log(text);
