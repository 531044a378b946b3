// The openai package for Node: chat, streams, functions, formats, responses, errors.
import assert from "node:assert";
import OpenAI from "openai";

const client = new OpenAI({ maxRetries: 0 });
const model = process.env.MODEL;
const asked = { model, messages: [{ role: "user", content: "What is the capital of France?" }], temperature: 0 };
const answer = (await client.chat.completions.create(asked)).choices[0].message.content;
assert(answer.includes("Paris"));
let text = "";
let usage;
const options = { stream: true, stream_options: { include_usage: true } };
for await (const chunk of await client.chat.completions.create({ ...asked, ...options })) {
  text += chunk.choices[0]?.delta.content ?? "";
  usage = chunk.usage ?? usage;
}
assert.equal(text, answer);
assert.equal(usage.completion_tokens, 8);
assert.equal((await client.chat.completions.stream(asked).finalChatCompletion()).choices[0].message.content, answer);

const parameters = {
  type: "object", properties: { city: { enum: ["Paris", "Rome"] } }, required: ["city"], additionalProperties: false,
};
const format = { type: "json_schema", json_schema: { name: "city", schema: parameters, strict: true } };
const formed = await client.chat.completions.parse({ ...asked, response_format: format });
assert(["Paris", "Rome"].includes(JSON.parse(formed.choices[0].message.content).city));
const tools = [{ type: "function", function: { name: "visit", parameters } }];
const { message } = (
  await client.chat.completions.create({ ...asked, tools, tool_choice: "required", parallel_tool_calls: false })
).choices[0];
assert(["Paris", "Rome"].includes(JSON.parse(message.tool_calls[0].function.arguments).city));
const turns = [...asked.messages, message, { role: "tool", tool_call_id: message.tool_calls[0].id, content: "It rains." }];
assert((await client.chat.completions.create({ ...asked, messages: turns, tools, max_tokens: 20 })).choices.length);

assert((await client.responses.create({ model, input: "What is the capital of France?", temperature: 0 })).output_text);
assert.equal((await client.embeddings.create({ model, input: ["a", "b"] })).data.length, 2); // as base64, by itself
await assert.rejects(client.chat.completions.create({ ...asked, model: "nobody" }), OpenAI.NotFoundError);
const long = { ...asked, messages: [{ role: "user", content: "word ".repeat(20_000) }] };
await assert.rejects(client.chat.completions.create(long), OpenAI.BadRequestError);
const left = await client.chat.completions.create({ ...asked, max_tokens: 4000, stream: true });
for await (const _ of left) break;
console.log(answer);
