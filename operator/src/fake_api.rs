//! An API server of a few lines, for tests: objects by path, versions, conflicts, merge for every patch.
use http::{Method, Request, Response, StatusCode};
use kube::{Client, client::Body};
use serde_json::{Map, Value, json};
use std::{
    collections::BTreeMap,
    convert::Infallible,
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
};

/// What it holds, and what was asked.
#[derive(Debug, Default)]
pub(crate) struct FakeApi {
    objects: Mutex<BTreeMap<String, Value>>,
    asked: Mutex<Vec<String>>,
    version: AtomicU64,
    down: AtomicBool,
}

impl FakeApi {
    pub(crate) fn new() -> Arc<Self> {
        Arc::default()
    }

    /// Needs a running tokio runtime.
    pub(crate) fn client(self: &Arc<Self>) -> Client {
        let api = self.clone();
        let service = tower::service_fn(move |request: Request<Body>| {
            let api = api.clone();
            async move { Ok::<_, Infallible>(api.answer(request).await) }
        });
        Client::new(service, "default")
    }

    /// From now on every request fails, or no more.
    pub(crate) fn set_down(&self, down: bool) {
        self.down.store(down, Ordering::SeqCst);
    }

    pub(crate) fn put(&self, path: &str, mut object: Value) {
        self.stamp(&mut object);
        self.objects.lock().unwrap().insert(path.to_owned(), object);
    }

    pub(crate) fn remove(&self, path: &str) {
        self.objects.lock().unwrap().remove(path);
    }

    pub(crate) fn get(&self, path: &str) -> Option<Value> {
        self.objects.lock().unwrap().get(path).cloned()
    }

    /// "METHOD path" of every request that may change something, since the last call.
    pub(crate) fn writes(&self) -> Vec<String> {
        let mut asked = self.asked.lock().unwrap();
        let all = std::mem::take(&mut *asked);
        all.into_iter().filter(|a| !a.starts_with("GET")).collect()
    }

    fn stamp(&self, object: &mut Value) {
        let version = self.version.fetch_add(1, Ordering::SeqCst) + 1;
        object["metadata"]["resourceVersion"] = version.to_string().into();
        if object["metadata"]["uid"].is_null() {
            object["metadata"]["uid"] = format!("uid-{version}").into();
        }
    }

    async fn answer(&self, request: Request<Body>) -> Response<Body> {
        let (parts, body) = request.into_parts();
        let path = parts.uri.path().to_owned();
        self.asked
            .lock()
            .unwrap()
            .push(format!("{} {path}", parts.method));
        if self.down.load(Ordering::SeqCst) {
            return status(StatusCode::INTERNAL_SERVER_ERROR, "InternalError");
        }
        let body = body.collect_bytes().await.unwrap();
        let body: Value = serde_json::from_slice(&body).unwrap_or_default();
        match parts.method {
            Method::GET if is_collection(&path) => {
                self.list(&path, parts.uri.query().unwrap_or(""))
            }
            Method::GET => match self.get(&path) {
                Some(o) => ok(&o),
                None if is_group(&path) => unknown_path(),
                None => status(StatusCode::NOT_FOUND, "NotFound"),
            },
            Method::POST => {
                let name = body["metadata"]["name"].as_str().unwrap_or_default();
                let path = format!("{path}/{name}");
                if self.get(&path).is_some() {
                    return status(StatusCode::CONFLICT, "AlreadyExists");
                }
                self.put(&path, body);
                ok(&self.get(&path).unwrap())
            }
            Method::PUT => {
                let Some(old) = self.get(&path) else {
                    return status(StatusCode::NOT_FOUND, "NotFound");
                };
                if old["metadata"]["resourceVersion"] != body["metadata"]["resourceVersion"] {
                    return status(StatusCode::CONFLICT, "Conflict");
                }
                self.put(&path, body);
                ok(&self.get(&path).unwrap())
            }
            Method::PATCH => self.patch(path.strip_suffix("/status").unwrap_or(&path), &body),
            Method::DELETE => match self.objects.lock().unwrap().remove(&path) {
                Some(o) => ok(&o),
                None => status(StatusCode::NOT_FOUND, "NotFound"),
            },
            _ => status(StatusCode::METHOD_NOT_ALLOWED, "MethodNotAllowed"),
        }
    }

    fn patch(&self, path: &str, body: &Value) -> Response<Body> {
        let old = self.get(path).unwrap_or_default();
        let mut new = old.clone();
        merge(&mut new, body);
        if new != old {
            self.put(path, new);
        }
        ok(&self.get(path).unwrap())
    }

    fn list(&self, path: &str, query: &str) -> Response<Body> {
        let wanted = selector(query);
        let chosen = |o: &Value| {
            let labels = &o["metadata"]["labels"];
            wanted.iter().all(|(k, v)| labels[k] == **v)
        };
        let objects = self.objects.lock().unwrap();
        let below = format!("{path}/");
        let items: Vec<&Value> = objects
            .iter()
            .filter(|(p, o)| p.starts_with(&below) && chosen(o))
            .map(|(_, o)| o)
            .collect();
        ok(
            &json!({ "kind": "List", "apiVersion": "v1", "metadata": {"resourceVersion": "1"}, "items": items }),
        )
    }
}

/// `/api/v1/namespaces/NAMESPACE/KINDS`, or the same of a group.
fn is_collection(path: &str) -> bool {
    let before = if path.starts_with("/apis/") { 7 } else { 6 };
    path.split('/').count() == before
}

/// `/apis/GROUP/VERSION`.
fn is_group(path: &str) -> bool {
    path.starts_with("/apis/") && path.split('/').count() == 4
}

/// As the API server answers where it has nothing.
fn unknown_path() -> Response<Body> {
    let mut response = Response::new(Body::from(b"404 page not found\n".to_vec()));
    *response.status_mut() = StatusCode::NOT_FOUND;
    response
}

fn selector(query: &str) -> Vec<(String, String)> {
    let all = query
        .split('&')
        .find_map(|p| p.strip_prefix("labelSelector="));
    let plain = all
        .unwrap_or_default()
        .replace("%3D", "=")
        .replace("%2C", ",")
        .replace("%2F", "/");
    plain
        .split(',')
        .filter_map(|p| p.split_once('='))
        .map(|(k, v)| (k.to_owned(), v.trim_start_matches('=').to_owned()))
        .collect()
}

/// RFC 7386.
fn merge(target: &mut Value, patch: &Value) {
    let Value::Object(patch) = patch else {
        *target = patch.clone();
        return;
    };
    if !target.is_object() {
        *target = Value::Object(Map::new());
    }
    for (k, v) in patch {
        if v.is_null() {
            target.as_object_mut().unwrap().remove(k);
        } else {
            merge(&mut target[k], v);
        }
    }
}

fn ok(object: &Value) -> Response<Body> {
    Response::new(Body::from(serde_json::to_vec(object).unwrap()))
}

fn status(code: StatusCode, reason: &str) -> Response<Body> {
    let body = json!({ "kind": "Status", "apiVersion": "v1", "status": "Failure", "reason": reason,
        "message": reason, "code": code.as_u16() });
    let mut response = ok(&body);
    *response.status_mut() = code;
    response
}
