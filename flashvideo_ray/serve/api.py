"""HTTP routes: what a request may hold, who may send it, and which call of the service answers it."""

from __future__ import annotations

import importlib.resources
import mimetypes
from collections.abc import Callable
from typing import Annotated, Any

from fastapi import Depends, FastAPI, Header, Query, Request, Response
from pydantic import BaseModel, ConfigDict, Field

from flashvideo_ray import __version__
from flashvideo_ray.ledger.decisions import Decision, Word
from flashvideo_ray.serve import media, problems, security
from flashvideo_ray.serve.events import Watched
from flashvideo_ray.serve.problems import Problem
from flashvideo_ray.serve.queue import Reply, Submission
from flashvideo_ray.serve.security import Caller, Role, Tokens
from flashvideo_ray.serve.service import BASE, Said, Service, Undo, as_text
from flashvideo_ray.serve.snapshot import Filter

_QUERY = {"sort", "cursor", "limit"}
_SINGLE = {"prompt_id", "q", "job"}
ClipId = Annotated[str, Field(pattern=r"^[0-9a-f]{20}$")]
ClipIds = Annotated[list[ClipId], Field(min_length=1, max_length=1000)]
Note = Annotated[str, Field(max_length=1000)]
PromptText = Annotated[str, Field(min_length=1, max_length=2000)]
Key = Annotated[str | None, Header(alias="Idempotency-Key", min_length=1, max_length=200)]


class _Body(BaseModel):
    model_config = ConfigDict(extra="forbid")


class PromptBody(_Body):
    """One prompt. Candidates with the same text and seed are the same, as in a batch job."""

    prompt: PromptText
    negative_prompt: Annotated[str, Field(max_length=2000)] | None = None
    seed: Annotated[int, Field(ge=0, lt=2**63)] | None = None
    id: Annotated[str, Field(min_length=1, max_length=200)] | None = None


class PromptsBody(_Body):
    """Prompts to make candidates of."""

    prompts: Annotated[list[PromptBody], Field(min_length=1, max_length=100)]
    candidates: Annotated[int, Field(ge=1, le=16)] | None = None
    refine: bool = False


class DecisionBody(_Body):
    """One word about one preview."""

    clip_id: ClipId
    word: Word
    note: Note | None = None


class DecisionsBody(_Body):
    """Decisions one by one, or one for all that a filter matches; `expect` is how many the person saw there."""

    decisions: Annotated[list[DecisionBody], Field(min_length=1, max_length=1000)] | None = None
    filter: dict[str, Any] | None = None
    word: Word | None = None
    note: Note | None = None
    expect: Annotated[int, Field(ge=0)] | None = None


class SaidBody(_Body):
    """What stood about a preview; `cleared` is what nobody had said anything about."""

    word: Word
    by: Annotated[str, Field(max_length=1000)] | None = None
    note: Note | None = None


class UndoBody(_Body):
    """A decision of the caller's that is to be taken back, and what stood before it."""

    clip_id: ClipId
    word: Word
    before: SaidBody


class UndosBody(_Body):
    """Decisions to take back."""

    decisions: Annotated[list[UndoBody], Field(min_length=1, max_length=1000)]


class ChosenBody(_Body):
    """Candidates by their ids, or by a filter."""

    clip_ids: ClipIds | None = None
    filter: dict[str, Any] | None = None


class RepromptBody(_Body):
    """Another prompt with the same seed."""

    prompt: PromptText


class SessionBody(_Body):
    """A token."""

    token: Annotated[str, Field(min_length=1, max_length=500)]


def create_app(service: Service, tokens: Tokens, hosts: list[str]) -> security.Guard:
    """The ASGI application over a service."""
    app = FastAPI(
        title="FlashVideo on Ray",
        version=__version__,
        openapi_url=f"{BASE}/openapi.json",
        docs_url=None,
        redoc_url=None,
    )
    problems.install(app)
    _session_routes(app, tokens)
    _read_routes(app, service)
    _change_routes(app, service)
    _page_routes(app)
    return security.Guard(app, tokens, hosts)


def _needs(role: Role) -> Any:
    def caller(request: Request) -> Caller:
        found: Caller | None = request.scope["caller"]
        if found is None:
            raise Problem(401, "A token is needed.", headers={"WWW-Authenticate": "Bearer"})
        if not found.may(role):
            raise Problem(403, f"This needs the role {role}; yours is {found.role}.")
        return found

    return Depends(caller)


Viewer = Annotated[Caller, _needs("viewer")]
Reviewer = Annotated[Caller, _needs("reviewer")]
Operator = Annotated[Caller, _needs("operator")]


def _readable(app: FastAPI, path: str, **options: Any) -> Callable[[Any], Any]:
    """A route for GET that answers HEAD, too; the server leaves the body out, and the description names it once."""

    def register(answer: Any) -> Any:
        app.head(path, include_in_schema=False)(answer)
        return app.get(path, **options)(answer)

    return register


def _session_routes(app: FastAPI, tokens: Tokens) -> None:
    @_readable(app, f"{BASE}/me")
    async def me(request: Request) -> dict[str, Any]:
        """Who the caller is, and whether a token is needed."""
        caller: Caller | None = request.scope["caller"]
        own = {"name": None, "role": None} if caller is None else {"name": caller.name, "role": caller.role}
        return {**own, "login_needed": caller is None}

    @app.post(f"{BASE}/session", status_code=204)
    async def log_in(body: SessionBody, request: Request) -> Response:
        """Exchange a token for a cookie that scripts cannot read."""
        if tokens.caller(body.token) is None:
            raise Problem(401, "That token is not known.", headers={"WWW-Authenticate": "Bearer"})
        response = Response(status_code=204)
        response.set_cookie(
            security.COOKIE, tokens.session(body.token), max_age=security.SESSION_SECONDS, path="/",
            httponly=True, samesite="strict", secure=request.url.scheme == "https",
        )  # fmt: skip
        return response

    @app.delete(f"{BASE}/session", status_code=204)
    async def log_out() -> Response:
        """Forget the cookie."""
        response = Response(status_code=204)
        response.delete_cookie(security.COOKIE, path="/", httponly=True, samesite="strict")
        return response


def _read_routes(app: FastAPI, service: Service) -> None:
    @_readable(app, f"{BASE}/run")
    async def run(caller: Viewer) -> dict[str, Any]:
        """The run: how many candidates have which status, what was spent."""
        return service.run()

    @_readable(app, f"{BASE}/candidates")
    async def candidates(
        request: Request,
        caller: Viewer,
        sort: Annotated[str, Query(max_length=100)] = "-made",
        cursor: Annotated[str | None, Query(max_length=8000)] = None,
        limit: Annotated[int, Query(ge=1, le=200)] = 60,
    ) -> Response:
        """A page. Filters: status (may repeat), prompt_id, job, q, min_<score>, max_<score>. `-` sorts falling."""
        wanted = Filter.parse(_filter_of(request), service.snapshot.scores)
        page = service.snapshot.page(wanted, service.active, sort, cursor, limit)
        items = ",".join(service.text(candidate) for candidate in page.items)
        return _tagged(request, f'{{"items":[{items}],"next":{as_text(page.next)},"total":{page.total}}}')

    @_readable(app, BASE + "/candidates/{clip_id}")
    async def candidate(clip_id: str, request: Request, caller: Viewer) -> Response:
        """One candidate."""
        return _tagged(request, service.text(service.candidate(clip_id)))

    @_readable(app, BASE + "/media/{clip_id}/{name}")
    async def file(clip_id: str, name: str, request: Request, caller: Viewer) -> Response:
        """preview.mp4, preview.jpg, clip.mp4 or clip.jpg, whole or one range of it."""
        key, kind = service.media(clip_id, name)
        return await media.respond(request, service.store, key, kind)

    @app.post(f"{BASE}/estimate")
    async def estimate(body: ChosenBody, caller: Viewer) -> dict[str, Any]:
        """What clips of these candidates would cost, from what clips cost so far."""
        return service.estimate(service.chosen(body.clip_ids, body.filter))

    @_readable(app, f"{BASE}/events")
    async def events(
        request: Request, caller: Viewer, last_event_id: Annotated[str | None, Header(max_length=100)] = None
    ) -> Response:
        """What changes, as server-sent events."""
        if request.method == "HEAD":  # it has no end that could be waited for
            return Response(media_type="text/event-stream")
        return Watched(service.hub, last_event_id)


def _change_routes(app: FastAPI, service: Service) -> None:
    @app.post(f"{BASE}/prompts", status_code=202)
    async def submit(body: PromptsBody, caller: Operator, response: Response, key: Key = None) -> dict[str, Any]:
        """Queue prompts. They are durable when this answers, and end even if everything is restarted."""
        submission = Submission(
            by=caller.name,
            prompts=tuple(prompt.model_dump() for prompt in body.prompts),
            candidates=body.candidates or service.settings.candidates,
            wish="refine" if body.refine else "preview",
            key=key,
        )
        return _accepted(await service.submit(submission), response)

    @app.post(BASE + "/candidates/{clip_id}/reseed", status_code=202)
    async def reseed(clip_id: str, caller: Operator, response: Response, key: Key = None) -> dict[str, Any]:
        """One more candidate of the same prompt, with the next seed."""
        submission = Submission(by=caller.name, reseed=service.candidate(clip_id).clip_id, key=key)
        return _accepted(await service.submit(submission), response)

    @app.post(BASE + "/candidates/{clip_id}/reprompt", status_code=202)
    async def reprompt(
        clip_id: str, body: RepromptBody, caller: Operator, response: Response, key: Key = None
    ) -> dict[str, Any]:
        """A candidate of another prompt, with the same seed."""
        like = service.candidate(clip_id)
        prompt = {"prompt": body.prompt, "negative_prompt": like.negative_prompt, "seed": like.seed, "id": None}
        return _accepted(await service.submit(Submission(by=caller.name, prompts=(prompt,), key=key)), response)

    @app.post(BASE + "/candidates/{clip_id}/cancel", status_code=202)
    async def cancel(clip_id: str, caller: Operator) -> dict[str, Any]:
        """Take back what waits."""
        await service.cancel(clip_id, caller.name)
        return service.shown(service.candidate(clip_id))

    @app.post(f"{BASE}/refine", status_code=202)
    async def refine(body: ChosenBody, caller: Operator) -> dict[str, Any]:
        """Queue stage 2 for candidates that survived selection or were approved; `left` had no room in the queue."""
        chosen = service.chosen(body.clip_ids, body.filter)
        if body.filter is not None:
            chosen = [candidate for candidate in chosen if candidate.survives and not candidate.is_pruned]
        if not chosen:
            return {"queued": 0, "left": 0}
        reply = await service.submit(Submission(by=caller.name, refine=tuple(c.clip_id for c in chosen)))
        return {"queued": len(reply.clip_ids), "left": reply.left}

    @app.post(f"{BASE}/decisions")
    async def decide(body: DecisionsBody, caller: Reviewer) -> dict[str, Any]:
        """Approve, reject, or clear what was decided. The last decision on a preview counts."""
        if (body.decisions is None) == (body.filter is None):
            raise Problem(422, "Give either decisions, or a filter with word and expect.")
        if body.decisions is not None:
            made = [Decision(each.clip_id, each.word, caller.name, each.note) for each in body.decisions]
        else:
            if body.word is None or body.expect is None:
                raise Problem(422, "A filter needs word and expect, the number of candidates that you mean.")
            chosen = [candidate for candidate in service.chosen(None, body.filter) if service.decidable(candidate)]
            if len(chosen) != body.expect:
                raise Problem(409, f"The filter now matches {len(chosen)} candidates, not {body.expect}; look again.")
            made = [Decision(c.clip_id, body.word, caller.name, body.note) for c in chosen]
        return {"items": await service.decide(made)}

    @app.post(f"{BASE}/decisions/undo")
    async def undo(body: UndosBody, caller: Reviewer) -> dict[str, Any]:
        """Take back own decisions where they still stand: what stood before comes back. `left` are the others."""
        steps = [Undo(each.clip_id, each.word, Said(**each.before.model_dump())) for each in body.decisions]
        items, left = await service.undo(steps, caller.name)
        return {"items": items, "left": left}


def _page_routes(app: FastAPI) -> None:
    """The page: files that ship with the package. What is not among them is not there, whatever it is called."""
    folder = importlib.resources.files("flashvideo_ray.serve") / "static"
    files = dict(_files(folder)) if folder.is_dir() else {}

    def answer(request: Request, name: str) -> Response:
        if name not in files:
            raise Problem(404, "There is no such file.")
        headers = {"ETag": media.etag(files[name]), "Cache-Control": "no-cache"}
        if media.not_modified(request, headers["ETag"]):
            return Response(status_code=304, headers=headers)
        kind = mimetypes.guess_type(name)[0] or "application/octet-stream"
        return Response(files[name], headers=headers, media_type=kind)

    @_readable(app, "/", include_in_schema=False)
    async def index(request: Request) -> Response:
        return answer(request, "index.html")

    @_readable(app, "/static/{name:path}", include_in_schema=False)
    async def static(name: str, request: Request) -> Response:
        return answer(request, name)


def _files(folder: Any, prefix: str = "") -> Any:
    for entry in folder.iterdir():
        if entry.is_dir():
            yield from _files(entry, f"{prefix}{entry.name}/")
        else:
            yield prefix + entry.name, entry.read_bytes()


def _filter_of(request: Request) -> dict[str, Any]:
    """Query parameters that are filters; only `status` may come more than once."""
    given: dict[str, Any] = {}
    for name, value in request.query_params.multi_items():
        if name == "status":
            given.setdefault("status", []).append(value)
        elif name in given:
            raise Problem(422, f"{name} is given twice.")
        elif name not in _QUERY:
            given[name] = value
    if any(len(given.get(name, "")) > 2000 for name in _SINGLE):
        raise Problem(422, "A filter may have 2000 characters.")
    return given


def _tagged(request: Request, text: str) -> Response:
    """JSON with an ETag, or that it has not changed."""
    body = text.encode()
    headers = {"ETag": media.etag(body), "Cache-Control": "private, no-cache"}
    if media.not_modified(request, headers["ETag"]):
        return Response(status_code=304, headers=headers)
    return Response(body, headers=headers, media_type="application/json")


def _accepted(reply: Reply, response: Response) -> dict[str, Any]:
    """The answer to a submission: where to look."""
    items = [{"clip_id": clip_id, "location": f"{BASE}/candidates/{clip_id}"} for clip_id in reply.clip_ids]
    response.headers["Location"] = items[0]["location"] if len(items) == 1 else f"{BASE}/candidates?job={reply.job}"
    return {"items": items, "job": reply.job}
