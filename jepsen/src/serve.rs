//! Shows what is kept of runs in a browser: a table of them all, and their files.

use std::fmt::Write as _;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use anyhow::Context as _;
use axum::Router;
use axum::extract::{Path as UrlPath, State};
use axum::http::{StatusCode, header};
use axum::response::{Html, IntoResponse, Response};
use axum::routing::get;
use tokio::net::TcpListener;

/// The judgement of a run, as its store has it.
const RESULTS: &str = "results.edn";
/// A file above this is not shown in a browser, but named.
const FILE_BYTES_MAX: u64 = 256 << 20;
/// What every page says of itself: nothing of it comes from elsewhere.
const POLICY: &str = "default-src 'self'; style-src 'unsafe-inline'; script-src 'none'";

/// Serves the store until this process is told to end.
///
/// # Errors
/// When the store is not there, or the address cannot be listened at.
pub async fn serve(store: &Path, listen: SocketAddr) -> anyhow::Result<()> {
    let store = store.canonicalize();
    let store = store.context("find the store; `--store` says where it is")?;
    let listener = TcpListener::bind(listen);
    let listener = listener
        .await
        .with_context(|| format!("listen at {listen}"))?;
    let address = listener.local_addr().context("ask for the address")?;
    eprintln!("runs of {} are shown at http://{address}/", store.display());
    let app = Router::new()
        .route("/", get(top))
        .route("/{*path}", get(inner))
        .with_state(Arc::new(store));
    axum::serve(listener, app)
        .with_graceful_shutdown(async {
            let _ = tokio::signal::ctrl_c().await;
        })
        .await
        .context("serve")
}

async fn top(State(store): State<Arc<PathBuf>>) -> Response {
    answer(&store, "")
}

async fn inner(State(store): State<Arc<PathBuf>>, UrlPath(path): UrlPath<String>) -> Response {
    answer(&store, &path)
}

fn answer(store: &Path, path: &str) -> Response {
    let not_there = || (StatusCode::NOT_FOUND, "there is no such file\n").into_response();
    // Whatever a path leads to, by dots or links: only what is in the store is shown.
    let Ok(found) = store.join(path).canonicalize() else {
        return not_there();
    };
    if !found.starts_with(store) {
        return not_there();
    }
    let shown = if found == store {
        runs(store).map(|page| Html(page).into_response())
    } else if found.is_dir() {
        listing(path, &found).map(|page| Html(page).into_response())
    } else {
        file(&found)
    };
    let mut response = shown.unwrap_or_else(|error| {
        let status = StatusCode::INTERNAL_SERVER_ERROR;
        (status, format!("{error:#}\n")).into_response()
    });
    let headers = response.headers_mut();
    for (name, value) in [
        (header::CONTENT_SECURITY_POLICY, POLICY),
        (header::X_CONTENT_TYPE_OPTIONS, "nosniff"),
    ] {
        headers.insert(name, header::HeaderValue::from_static(value));
    }
    response
}

fn file(path: &Path) -> anyhow::Result<Response> {
    let about = path.metadata();
    let bytes = about
        .with_context(|| format!("look at {}", path.display()))?
        .len();
    if bytes > FILE_BYTES_MAX {
        let text = format!("{} has {bytes} bytes: read it there\n", path.display());
        return Ok((StatusCode::PAYLOAD_TOO_LARGE, text).into_response());
    }
    let content = std::fs::read(path).with_context(|| format!("read {}", path.display()))?;
    let kind = match path.extension().and_then(|it| it.to_str()) {
        Some("html") => "text/html; charset=utf-8",
        Some("svg") => "image/svg+xml",
        Some("edn" | "json" | "jsonl" | "log" | "toml") => "text/plain; charset=utf-8",
        _ => "application/octet-stream",
    };
    Ok(([(header::CONTENT_TYPE, kind)], content).into_response())
}

/// A run, by its place in the store: `WORKLOAD-NEMESES/TIME-SEED`.
struct Kept {
    place: String,
    judgement: Option<&'static str>,
}

/// All runs, the last first.
fn kept(store: &Path) -> anyhow::Result<Vec<Kept>> {
    let mut all = Vec::new();
    for what in names(store)? {
        let dir = store.join(&what);
        // `latest` leads to one of them.
        if dir.is_symlink() || !dir.is_dir() {
            continue;
        }
        for when in names(&dir)? {
            let run = dir.join(&when);
            if !run.is_dir() {
                continue;
            }
            let results = std::fs::read_to_string(run.join(RESULTS)).ok();
            all.push(Kept {
                place: format!("{what}/{when}"),
                judgement: results.as_deref().map(judgement),
            });
        }
    }
    all.sort_by(|a, b| when(b).cmp(when(a)));
    Ok(all)
}

fn when(run: &Kept) -> &str {
    run.place.rsplit('/').next().unwrap_or_default()
}

fn judgement(results: &str) -> &'static str {
    match results {
        text if text.starts_with("{:valid? true") => "valid",
        text if text.starts_with("{:valid? false") => "invalid",
        _ => "unknown",
    }
}

fn names(dir: &Path) -> anyhow::Result<Vec<String>> {
    let entries = std::fs::read_dir(dir).with_context(|| format!("list {}", dir.display()))?;
    let names = entries.flatten().map(|entry| entry.file_name());
    let mut names: Vec<String> = names.filter_map(|name| name.into_string().ok()).collect();
    names.sort();
    Ok(names)
}

fn runs(store: &Path) -> anyhow::Result<String> {
    let mut rows = String::new();
    for run in kept(store)? {
        let judgement = run.judgement.unwrap_or("under way, or broken off");
        let place = escaped(&run.place);
        let _ = writeln!(
            rows,
            "<tr class=\"{}\"><td><a href=\"/{place}\">{place}</a><td>{judgement}",
            run.judgement.unwrap_or("none")
        );
    }
    if rows.is_empty() {
        rows.push_str("<tr><td>there is no run yet");
    }
    Ok(page("runs", &format!("<table>\n{rows}</table>")))
}

fn listing(place: &str, dir: &Path) -> anyhow::Result<String> {
    let mut items = String::new();
    for name in names(dir)? {
        let (place, name) = (escaped(place.trim_end_matches('/')), escaped(&name));
        let _ = writeln!(items, "<li><a href=\"/{place}/{name}\">{name}</a>");
    }
    let place = escaped(place);
    Ok(page(
        &place,
        &format!("<p><a href=\"/\">all runs</a></p>\n<ul>\n{items}</ul>"),
    ))
}

fn page(title: &str, body: &str) -> String {
    format!(
        "<!doctype html>\n<html lang=\"en\"><meta charset=\"utf-8\"><title>{title}</title>\n\
         <style>body {{ font-family: sans-serif }} td {{ padding: 0 1em }}\n\
         .valid {{ background: #dfd }} .invalid {{ background: #fcc }} .unknown {{ background: #ffc }}</style>\n\
         <h1>{title}</h1>\n{body}\n"
    )
}

fn escaped(text: &str) -> String {
    text.replace('&', "&amp;")
        .replace('<', "&lt;")
        .replace('>', "&gt;")
        .replace('"', "&quot;")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn store() -> tempfile::TempDir {
        let outer = tempfile::tempdir().unwrap();
        let store = outer.path().join("store");
        for (run, results) in [
            (
                "mixed-kill/20260101T000000Z-7",
                "{:valid? true, :counts {}}",
            ),
            ("lanes-kill/20260102T000000Z-8", "{:valid? false}"),
            ("lanes-kill/20260103T000000Z-9", "{:valid? :unknown}"),
        ] {
            std::fs::create_dir_all(store.join(run)).unwrap();
            std::fs::write(store.join(run).join(RESULTS), results).unwrap();
        }
        std::fs::create_dir_all(store.join("mixed-kill/20260104T000000Z-1")).unwrap();
        std::os::unix::fs::symlink("mixed-kill", store.join("latest")).unwrap();
        std::fs::write(outer.path().join("secret"), "not for you").unwrap();
        std::os::unix::fs::symlink(outer.path().join("secret"), store.join("way-out")).unwrap();
        outer
    }

    async fn body(response: Response) -> String {
        let bytes = axum::body::to_bytes(response.into_body(), 1 << 20);
        String::from_utf8(bytes.await.unwrap().to_vec()).unwrap()
    }

    #[tokio::test]
    async fn all_runs_are_shown_the_last_first() {
        let outer = store();
        let store = outer.path().join("store").canonicalize().unwrap();
        let page = body(answer(&store, "")).await;
        let at = |what: &str| {
            page.find(what)
                .unwrap_or_else(|| panic!("no {what}: {page}"))
        };
        assert!(at("20260104T000000Z-1") < at("20260103T000000Z-9"));
        assert!(at("20260103T000000Z-9") < at("20260101T000000Z-7"));
        for (class, count) in [("valid", 1), ("invalid", 1), ("unknown", 1), ("none", 1)] {
            let found = page.matches(&format!("class=\"{class}\"")).count();
            assert_eq!(found, count, "{class}: {page}");
        }
        let page = body(answer(&store, "mixed-kill/20260101T000000Z-7")).await;
        let link = "href=\"/mixed-kill/20260101T000000Z-7/results.edn\"";
        assert!(page.contains(link), "{page}");
    }

    #[tokio::test]
    async fn files_are_shown_and_nothing_beside_the_store() {
        let outer = store();
        let store = outer.path().join("store").canonicalize().unwrap();
        let shown = answer(&store, "mixed-kill/20260101T000000Z-7/results.edn");
        assert_eq!(
            shown.headers()[header::CONTENT_TYPE],
            "text/plain; charset=utf-8"
        );
        assert!(body(shown).await.contains(":counts"));
        for path in ["../secret", "way-out", "mixed-kill/../../secret", "no-such"] {
            let refused = answer(&store, path);
            assert_eq!(refused.status(), StatusCode::NOT_FOUND, "{path}");
        }
    }
}
