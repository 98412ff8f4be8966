// Chat whole and streamed, the stream helper, several choices, log probabilities, embeddings and models.
import assert from "node:assert/strict";
import { asked, client, MODEL } from "./client.mjs";

const whole = await client.chat.completions.create(asked);
const words = whole.choices[0].message.content;
assert.equal(whole.object, "chat.completion");
assert.ok(words.length > 0);

const stream = await client.chat.completions.create({
  ...asked,
  stream: true,
  stream_options: { include_usage: true },
});
let streamed = "";
let usage;
for await (const chunk of stream) {
  streamed += chunk.choices[0]?.delta.content ?? "";
  usage = chunk.usage;
}
assert.equal(streamed, words);
// The footprint beside them follows the time that a request took.
const tokens = ({ prompt_tokens, completion_tokens, total_tokens }) => [prompt_tokens, completion_tokens, total_tokens];
assert.deepEqual(tokens(usage), tokens(whole.usage));

const deltas = [];
const runner = client.chat.completions.stream({ ...asked, logprobs: true, top_logprobs: 1 });
runner.on("content", (delta) => deltas.push(delta));
const final = await runner.finalChatCompletion();
assert.equal(deltas.join(""), words);
assert.equal(final.choices[0].message.content, words);
assert.equal(final.choices[0].finish_reason, whole.choices[0].finish_reason);
assert.equal(final.choices[0].logprobs.content.length, whole.usage.completion_tokens);

const drawn = { ...asked, temperature: 1, seed: 4, n: 3 };
const three = (await client.chat.completions.create(drawn)).choices.map((choice) => choice.message.content);
const several = await client.chat.completions.stream(drawn).finalChatCompletion();
assert.deepEqual(several.choices.map((choice) => choice.message.content), three);
assert.equal(new Set(three).size, 3);

const completion = { model: MODEL, prompt: "The colours of the rainbow are", max_tokens: 12, temperature: 0 };
const text = (await client.completions.create(completion)).choices[0].text;
let pieces = "";
for await (const chunk of await client.completions.create({ ...completion, stream: true })) {
  pieces += chunk.choices[0].text;
}
assert.equal(pieces, text);

const embedding = process.env.SERVICE_EMBEDDING;
const [vector] = (await client.embeddings.create({ model: embedding, input: "one box" })).data;
const [plain] = (await client.embeddings.create({ model: embedding, input: "one box", encoding_format: "float" })).data;
assert.deepEqual(Array.from(vector.embedding, Math.fround), plain.embedding.map(Math.fround));

const models = [];
for await (const model of client.models.list()) models.push(model.id);
assert.ok(models.includes(MODEL));
