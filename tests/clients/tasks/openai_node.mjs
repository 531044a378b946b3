// The openai package for Node: a question, a stream, a function.
import assert from "node:assert";
import OpenAI from "openai";

const client = new OpenAI();
const model = process.env.MODEL;
const asked = { model, messages: [{ role: "user", content: "What is the capital of France?" }], temperature: 0 };
const answer = (await client.chat.completions.create(asked)).choices[0].message.content;
assert(answer.includes("Paris"));
let text = "";
for await (const chunk of await client.chat.completions.create({ ...asked, stream: true })) {
  text += chunk.choices[0].delta.content ?? "";
}
assert.equal(text, answer);
const parameters = { type: "object", properties: { city: { enum: ["Paris", "Rome"] } }, required: ["city"] };
const tools = [{ type: "function", function: { name: "visit", parameters } }];
const called = await client.chat.completions.create({
  ...asked, tools, tool_choice: "required", parallel_tool_calls: false,
});
assert(["Paris", "Rome"].includes(JSON.parse(called.choices[0].message.tool_calls[0].function.arguments).city));
assert((await client.responses.create({ model, input: "What is the capital of France?", temperature: 0 })).output_text);
console.log(answer);
