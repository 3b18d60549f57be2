/** Requests to the API, whose errors become sentences. */

export class RequestError extends Error {
  override name = "RequestError";
  constructor(
    readonly status: number,
    message: string,
  ) {
    super(message);
  }
}

/** Fetches bytes. @param what names the resource in errors, as "The frames". */
export async function fetchBytes(url: string, what: string, signal?: AbortSignal): Promise<ArrayBuffer> {
  let response: Response;
  try {
    response = await fetch(url, { credentials: "same-origin", ...(signal ? { signal } : {}) });
  } catch (error) {
    if (isAbort(error)) throw error;
    throw new RequestError(0, `${what} could not be fetched: the service did not answer.`);
  }
  if (!response.ok) throw new RequestError(response.status, await describeFailure(response, what));
  return response.arrayBuffer();
}

export function isAbort(error: unknown): boolean {
  return error instanceof DOMException && error.name === "AbortError";
}

/** A sentence about an answer that is no success, with what the service says in its JSON. */
export async function describeFailure(response: Response, what: string): Promise<string> {
  const explanation = await readExplanation(response);
  return `${what} could not be fetched (HTTP ${response.status})${explanation === "" ? "." : `: ${explanation}`}`;
}

async function readExplanation(response: Response): Promise<string> {
  try {
    const body = (await response.json()) as Record<string, unknown>;
    for (const key of ["detail", "title", "message"]) {
      const value = body[key];
      if (typeof value === "string") return value;
      if (value !== null && typeof value === "object" && !Array.isArray(value)) {
        const message = (value as Record<string, unknown>).message ?? (value as Record<string, unknown>).what;
        if (typeof message === "string") return message;
      }
    }
  } catch {
    // No JSON: the status says what there is to say.
  }
  return "";
}
