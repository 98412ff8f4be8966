// Answers and the arguments of tools, parsed into schemas of the caller.
import assert from "node:assert/strict";
import { zodFunction, zodResponseFormat } from "openai/helpers/zod";
import { z } from "zod";
import { asked, client } from "./client.mjs";

const Leg = z.object({ by: z.enum(["train", "ferry"]), hours: z.number().int().min(1).max(9) });
const Journey = z.object({
  town: z.enum(["Oslo", "Rome"]),
  leg: Leg,
  back: Leg.nullable(),
  code: z.string().regex(/^[A-Z]{3}$/),
  days: z.array(z.enum(["mon", "tue"])).min(1).max(2),
});

const journey = { ...asked, max_tokens: 200, response_format: zodResponseFormat(Journey, "journey") };
const parsed = (await client.chat.completions.parse(journey)).choices[0].message.parsed;
Journey.parse(parsed);
const streamed = await client.chat.completions.stream(journey).finalChatCompletion();
assert.deepEqual(streamed.choices[0].message.parsed, parsed);

const Weather = z.object({ city: z.enum(["Oslo", "Rome"]), unit: z.enum(["celsius", "kelvin"]) });
const tools = [zodFunction({ name: "get_weather", description: "Tells the weather.", parameters: Weather })];
const called = { ...asked, max_tokens: 80, tools, tool_choice: "required" };
const message = (await client.chat.completions.parse(called)).choices[0].message;
assert.ok(message.tool_calls.length >= 1);
for (const call of message.tool_calls) Weather.parse(call.function.parsed_arguments);
const again = await client.chat.completions.stream(called).finalChatCompletion();
assert.deepEqual(
  again.choices[0].message.tool_calls.map((call) => call.function.parsed_arguments),
  message.tool_calls.map((call) => call.function.parsed_arguments),
);
