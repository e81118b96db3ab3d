/** The page: its frame, the view that the URL's hash selects, and the field for a token if the service requires one. */

import { render } from "preact";
import { useEffect, useState } from "preact/hooks";
import type { Model } from "../gen/sagittal/v1/model_pb";
import { isUnauthenticated, messageOf, models as modelService, token } from "./api";
import { BatchesView } from "./batches";
import { CompareView } from "./compare";
import { ConceptsView } from "./concepts";
import { ExplainView } from "./explain";
import { JobsView } from "./jobs";
import { ModelsView } from "./models";
import { Notice, Status } from "./components";
import { SystemView } from "./system";
import { texts } from "./texts";

/** Time between two updates of the models, in milliseconds: while they are shown, absent or unreadable, and otherwise. */
const LOOK_SOON = 5000;
const LOOK = 60_000;

/** Views that have nothing to show without a model. */
const MODEL_VIEWS = ["explain", "compare", "models"];

function Page() {
  const [{ route, visit }, setRoute] = useState({ route: location.hash, visit: 0 });
  const [models, setModels] = useState<Model[]>();
  const [problem, setProblem] = useState("");
  const [asksToken, setAsksToken] = useState(false);
  const [turn, setTurn] = useState(0);
  useEffect(() => {
    const changed = () => setRoute((known) => ({ route: location.hash, visit: known.visit + 1 }));
    window.addEventListener("hashchange", changed);
    return () => window.removeEventListener("hashchange", changed);
  }, []);
  const [, view = "explain", id = "", second = ""] = route.split("/").map(decoded);
  const watchesModels = view === "models";
  useEffect(() => {
    const stop = new AbortController();
    let timer = 0;
    const look = async () => {
      clearTimeout(timer);
      let pause = LOOK_SOON;
      try {
        const found = await allModels(stop.signal);
        setModels(found);
        setProblem("");
        setAsksToken(false);
        if (found.length && !watchesModels) pause = LOOK;
      } catch (error) {
        if (stop.signal.aborted) return;
        if (isUnauthenticated(error)) return setAsksToken(true);
        setProblem(messageOf(error));
      }
      timer = window.setTimeout(lookIfSeen, pause);
    };
    // A page that nobody sees asks for nothing; it looks when it is shown again.
    const lookIfSeen = () => void (document.visibilityState === "visible" && look());
    document.addEventListener("visibilitychange", lookIfSeen);
    void look();
    return () => {
      stop.abort();
      clearTimeout(timer);
      document.removeEventListener("visibilitychange", lookIfSeen);
    };
  }, [turn, watchesModels]);
  const onToken = () => setAsksToken(true);
  const name = texts.pages[view as keyof typeof texts.pages];
  useEffect(() => {
    document.title = name && view !== "explain" ? texts.titleOf(name) : texts.name;
    // A screen reader continues in the new view, and the keyboard with it; the first view leaves the focus alone.
    if (visit) document.getElementById("content")?.focus();
    // On a phone the views are a row that scrolls.
    document.querySelector("nav [aria-current]")?.scrollIntoView({ inline: "center", block: "nearest" });
  }, [visit]);
  return (
    <>
      <a class="skip" href="#content">{texts.skip}</a>
      <header>
        <a class="name" href="#/explain">{texts.name}</a>
        <nav>
          {(["explain", "compare", "jobs", "batches", "models", "concepts", "system"] as const).map((each) => (
            <a key={each} href={`#/${each}`} aria-current={each === view || (view === "job" && each === "explain") ? "page" : undefined}>
              {texts.pages[each]}
            </a>
          ))}
        </nav>
      </header>
      <main id="content" tabIndex={-1}>
        {asksToken && <TokenForm wrong={token.get() !== ""} onToken={() => setTurn(turn + 1)} />}
        {problem && (
          <Status tone="bad">
            {texts.state.offline} {problem}
          </Status>
        )}
        {!asksToken && !models && !problem && <Status>{texts.state.loading}</Status>}
        {!asksToken && models?.length === 0 && MODEL_VIEWS.includes(view) && id === "" && (
          <Notice title={texts.state.noModels}>
            <p>{texts.state.noModelsRemedy}</p>
            <pre>{texts.state.noModelsCommand}</pre>
          </Notice>
        )}
        {!asksToken && models && (view === "job" || (view === "explain" && models.length > 0)) && (
          <ExplainView key={visit} models={models} jobId={view === "job" ? id : ""} onToken={onToken} />
        )}
        {!asksToken && models && view === "compare" && (id !== "" || models.length > 0) && (
          <CompareView key={visit} models={models} first={id} second={second} onToken={onToken} />
        )}
        {!asksToken && view === "jobs" && <JobsView onToken={onToken} />}
        {!asksToken && view === "batches" && <BatchesView onToken={onToken} />}
        {!asksToken && view === "concepts" && (
          <ConceptsView key={visit} model={id} name={second} onToken={onToken} />
        )}
        {!asksToken && view === "system" && <SystemView key={visit} onToken={onToken} />}
        {!asksToken && view === "models" && models && models.length > 0 && <ModelsView models={models} onToken={onToken} />}
      </main>
    </>
  );
}

/** Returns all models with their methods, which the list omits: they are read model by model. */
async function allModels(signal: AbortSignal): Promise<Model[]> {
  const listed: Model[] = [];
  let pageToken = "";
  do {
    const page = await modelService.listModels({ pageToken }, { signal });
    listed.push(...page.models);
    pageToken = page.nextPageToken;
  } while (pageToken);
  const whole = await Promise.all(
    listed.map(({ name, version }) => modelService.getModel({ name, version }, { signal })),
  );
  return whole.map((answer) => answer.model).filter((model): model is Model => model !== undefined);
}

/** Returns a part of the address as text, as it is if it is damaged. */
function decoded(part: string): string {
  try {
    return decodeURIComponent(part);
  } catch {
    return part;
  }
}

function TokenForm(props: { wrong: boolean; onToken: () => void }) {
  const [value, setValue] = useState("");
  return (
    <form
      class="token"
      onSubmit={(event) => {
        event.preventDefault();
        token.set(value.trim());
        props.onToken();
      }}
    >
      <h1>{texts.token.title}</h1>
      {props.wrong && <Status tone="bad">{texts.token.wrong}</Status>}
      <label>
        {texts.token.label}
        <input type="password" autocomplete="off" value={value} onInput={(event) => setValue(event.currentTarget.value)} />
      </label>
      <p class="faint">{texts.token.kept}</p>
      <button type="submit" class="primary">{texts.token.use}</button>
    </form>
  );
}

render(<Page />, document.body);
