#pragma once

// Activation functions on one vector. A new one is a function here and a line in manifest.inc.

// Below this, exp stays at 2^-126.
constexpr float kLowestExponent = -87.336f;

// exp(x) for finite x, within 2 units in the last place.
inline V::reg exp(V::reg x) {
  x = V::min(V::max(x, V::set1(kLowestExponent)), V::set1(88.37f));
  const V::reg n = V::round(V::mul(x, V::set1(1.44269504f)));
  // ln 2 in two parts, the first exact in 10 bits, so that n * part is exact.
  V::reg r = V::fma(n, V::set1(-0.693359375f), x);
  r = V::fma(n, V::set1(2.12194440e-4f), r);
  // Taylor series: |r| <= ln(2) / 2, so the first omitted term is below 6e-9.
  V::reg p = V::set1(1.0f / 5040);
  p = V::fma(p, r, V::set1(1.0f / 720));
  p = V::fma(p, r, V::set1(1.0f / 120));
  p = V::fma(p, r, V::set1(1.0f / 24));
  p = V::fma(p, r, V::set1(1.0f / 6));
  p = V::fma(p, r, V::set1(0.5f));
  p = V::fma(p, r, V::set1(1.0f));
  p = V::fma(p, r, V::set1(1.0f));
  return V::scale_by_power(p, n);
}

// erf(x) = x P(x^2) / Q(x^2), a minimax fit on |x| <= 3.92 where erf reaches 1 - 3e-8; absolute
// error below 5e-7.
inline V::reg erf(V::reg x) {
  x = V::min(V::max(x, V::set1(-3.92f)), V::set1(3.92f));
  const V::reg t = V::mul(x, x);
  V::reg p = V::set1(2.0499983e-6f);
  p = V::fma(p, t, V::set1(2.8486509e-4f));
  p = V::fma(p, t, V::set1(3.7653008e-3f));
  p = V::fma(p, t, V::set1(5.2747738e-2f));
  p = V::fma(p, t, V::set1(1.9040054e-1f));
  p = V::fma(p, t, V::set1(1.1283791f));
  V::reg q = V::set1(3.8089864e-5f);
  q = V::fma(q, t, V::set1(1.1624388e-3f));
  q = V::fma(q, t, V::set1(1.4968601e-2f));
  q = V::fma(q, t, V::set1(1.1410648e-1f));
  q = V::fma(q, t, V::set1(5.0207084e-1f));
  q = V::fma(q, t, V::set1(1.0f));
  const V::reg y = V::div(V::mul(x, p), q);
  return V::min(V::max(y, V::set1(-1.0f)), V::set1(1.0f));
}

inline V::reg identity(V::reg x) { return x; }

inline V::reg relu(V::reg x) { return V::max(x, V::zero()); }

inline V::reg sigmoid(V::reg x) {
  return V::div(V::set1(1.0f), V::add(V::set1(1.0f), exp(V::sub(V::zero(), x))));
}

inline V::reg silu(V::reg x) { return V::mul(x, sigmoid(x)); }

inline V::reg tanh(V::reg x) {
  const V::reg e = exp(V::mul(V::abs(x), V::set1(-2.0f)));
  const V::reg y = V::div(V::sub(V::set1(1.0f), e), V::add(V::set1(1.0f), e));
  return V::copysign(y, x);
}

inline V::reg gelu(V::reg x) {
  const V::reg half = V::mul(x, V::set1(0.5f));
  return V::fma(half, erf(V::mul(x, V::set1(0.70710678f))), half);
}

inline V::reg gelu_tanh(V::reg x) {
  const V::reg cubic = V::fma(V::mul(V::mul(x, x), x), V::set1(0.044715f), x);
  const V::reg half = V::mul(x, V::set1(0.5f));
  return V::fma(half, tanh(V::mul(cubic, V::set1(0.79788456f))), half);
}
