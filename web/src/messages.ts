/** Problems in plain words, with what to do. */

import { ApiError } from "./api";

const WORDS: Readonly<Record<string, string>> = {
  unreachable: "The service does not answer. Check that it runs; your outlines are safe in this browser.",
  "unknown-slide": "This slide is no longer served. Choose another one.",
  "unreadable-slide": "This slide cannot be read: its file is damaged or of an unknown kind. Choose another one.",
  "not-brightfield": "This is not a brightfield slide. Choose another one.",
  "prompt-outside-slide": "That lies outside the slide. Draw on the tissue.",
  "no-positive-point": "Begin with a box or with a click on the object; exclude parts of it afterwards.",
  "empty-prompt": "Begin with a box or with a click on the object.",
  "invalid-box": "The box is too small. Drag it around the whole object.",
  overloaded: "The service is busy. Wait a moment and try again.",
  "rate-limited": "Too many requests at once. Wait a moment and try again.",
  "not-ready": "The service is still starting. Try again in a few seconds.",
  "worker-unavailable": "The model's worker does not answer. Try again; if it goes on, tell whoever runs the service.",
  "pacs-unavailable": "The archive that holds this slide does not answer. Try again; other slides go on working.",
  timeout: "The answer took too long. Try again.",
  unauthorized: "The service wants an access key. Enter one under Service, at the top.",
  forbidden: "Your access key does not allow this. Ask whoever runs the service.",
  internal: "The service made a mistake. Try again; its log has the details.",
};

export function inWords(error: unknown): string {
  if (!(error instanceof ApiError)) return `The page made a mistake (${String(error)}). Reload it; your outlines are kept.`;
  return WORDS[error.type] ?? `The service refused this: ${error.detail || error.type}`;
}
