// What every script here begins with: the official client on the service under test.
import OpenAI from "openai";

export const MODEL = process.env.SERVICE_MODEL;
export const client = new OpenAI({
  baseURL: `${process.env.SERVICE_URL}/v1`,
  apiKey: process.env.SERVICE_KEY,
  maxRetries: 0,
  timeout: 120_000,
});
export const messages = [{ role: "user", content: "Name three colours of the rainbow." }];
export const asked = { model: MODEL, messages, max_tokens: 24, temperature: 0 };
