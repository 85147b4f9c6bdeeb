//! Password verifiers: argon2id in PHC form.
use argon2::{
    Argon2,
    password_hash::{PasswordHash, PasswordHasher, PasswordVerifier, SaltString},
};

/// The PHC string of `password`; `salt` is random.
pub fn hash_password(password: &str, salt: &[u8; 16]) -> Result<String, String> {
    let salt = SaltString::encode_b64(salt).map_err(|e| e.to_string())?;
    Argon2::default()
        .hash_password(password.as_bytes(), &salt)
        .map(|h| h.to_string())
        .map_err(|e| e.to_string())
}

/// Costs some 20 ms of CPU and 19 MiB by design.
pub fn verify_password(verifier: &str, password: &[u8]) -> bool {
    PasswordHash::new(verifier)
        .is_ok_and(|h| Argon2::default().verify_password(password, &h).is_ok())
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "tests")]
mod tests {
    use super::*;

    #[test]
    fn only_the_right_password_verifies() {
        let v = hash_password("secret", &[7; 16]).unwrap();
        assert!(v.starts_with("$argon2id$"));
        assert!(verify_password(&v, b"secret"));
        assert!(!verify_password(&v, b"Secret"));
        assert!(!verify_password("nonsense", b"secret"));
    }
}
