//! The API by its paths, in JSON: what is sent and what comes back are seen as they are.

use std::path::Path;

use anyhow::{Context, Result};
use http::Request;
use http::header::CONTENT_TYPE;
use kube::Client;
use kube::config::{Config, KubeConfigOptions, Kubeconfig};
use serde_json::{Value, json};

/// What the API server refused.
#[derive(Debug, Clone)]
pub struct Refused {
    /// HTTP status, 404 for example.
    pub code: u16,
    /// What it says.
    pub message: String,
}

impl std::fmt::Display for Refused {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(formatter, "{}: {}", self.code, self.message)
    }
}

impl std::error::Error for Refused {}

/// A client with the identity of a kubeconfig.
#[derive(Clone)]
pub struct Api(Client);

impl std::fmt::Debug for Api {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter.write_str("Api")
    }
}

impl Api {
    /// # Errors
    /// When the file is no kubeconfig.
    pub async fn new(kubeconfig: &Path) -> Result<Self> {
        // Two implementations may be linked in; the first who asks decides.
        let _already = rustls::crypto::aws_lc_rs::default_provider().install_default();
        let file = Kubeconfig::read_from(kubeconfig)?;
        let config = Config::from_custom_kubeconfig(file, &KubeConfigOptions::default()).await?;
        Ok(Self(Client::try_from(config)?))
    }

    async fn text(
        &self,
        method: &str,
        path: &str,
        kind: &str,
        body: Option<&Value>,
    ) -> Result<String> {
        let octets = match body {
            Some(body) => serde_json::to_vec(body)?,
            None => Vec::new(),
        };
        let request = Request::builder()
            .method(method)
            .uri(path)
            .header(CONTENT_TYPE, kind)
            .body(octets)?;
        match self.0.request_text(request).await {
            Ok(text) => Ok(text),
            Err(kube::Error::Api(status)) => Err(Refused {
                code: status.code,
                message: status.message.clone(),
            }
            .into()),
            Err(error) => Err(error).with_context(|| format!("{method} {path}")),
        }
    }

    async fn ask(
        &self,
        method: &str,
        path: &str,
        kind: &str,
        body: Option<&Value>,
    ) -> Result<Value> {
        let text = self.text(method, path, kind, body).await?;
        serde_json::from_str(&text).with_context(|| format!("{method} {path}: {text}"))
    }

    /// What is no object, such as `/readyz`.
    ///
    /// # Errors
    /// [`Refused`], or when nobody answers.
    pub async fn plain(&self, path: &str) -> Result<String> {
        self.text("GET", path, "application/json", None).await
    }

    /// # Errors
    /// [`Refused`], or when nobody answers.
    pub async fn get(&self, path: &str) -> Result<Value> {
        self.ask("GET", path, "application/json", None).await
    }

    /// `None`: there is no such object.
    ///
    /// # Errors
    /// [`Refused`] for another reason, or when nobody answers.
    pub async fn find(&self, path: &str) -> Result<Option<Value>> {
        match self.get(path).await {
            Ok(object) => Ok(Some(object)),
            Err(error) if code(&error) == Some(404) => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// The items of a list.
    ///
    /// # Errors
    /// [`Refused`], or when nobody answers.
    pub async fn list(&self, path: &str) -> Result<Vec<Value>> {
        let mut list = self.get(path).await?;
        let items = list.get_mut("items").map(Value::take);
        match items {
            Some(Value::Array(items)) => Ok(items),
            _ => anyhow::bail!("{path} is no list: {list}"),
        }
    }

    /// # Errors
    /// [`Refused`], or when nobody answers.
    pub async fn post(&self, path: &str, object: &Value) -> Result<Value> {
        self.ask("POST", path, "application/json", Some(object))
            .await
    }

    /// Merge patch (RFC 7386).
    ///
    /// # Errors
    /// [`Refused`], or when nobody answers.
    pub async fn merge(&self, path: &str, patch: &Value) -> Result<Value> {
        self.ask("PATCH", path, "application/merge-patch+json", Some(patch))
            .await
    }

    /// Deletes the object if it still is the one with that uid; one that is gone is no error.
    ///
    /// # Errors
    /// [`Refused`] for another reason, or when nobody answers.
    pub async fn delete_now(&self, path: &str, uid: &str) -> Result<()> {
        let options = json!({
            "apiVersion": "v1",
            "kind": "DeleteOptions",
            "gracePeriodSeconds": 0,
            "preconditions": { "uid": uid },
        });
        match self
            .text("DELETE", path, "application/json", Some(&options))
            .await
        {
            Ok(_) => Ok(()),
            Err(error) if matches!(code(&error), Some(404 | 409)) => Ok(()),
            Err(error) => Err(error),
        }
    }
}

/// HTTP status of a refusal.
fn code(error: &anyhow::Error) -> Option<u16> {
    error.downcast_ref::<Refused>().map(|refused| refused.code)
}
