// What stands between the int8 layers of a model: fp32 inside, one rounding at the end.

// e**x for x <= 0, within 2 units in the last place; 0 below -87.
inline float exponential(float x) {
  const float clamped = x > -87.0f ? x : -87.0f;
  const float steps = __builtin_rintf(clamped * 1.44269504f);
  float r = clamped - steps * 0.693359375f;  // ln 2 in two parts
  r -= steps * -2.12194440e-4f;
  float y = 1.9875691500e-4f;
  y = y * r + 1.3981999507e-3f;
  y = y * r + 8.3334519073e-3f;
  y = y * r + 4.1665795894e-2f;
  y = y * r + 1.6666665459e-1f;
  y = y * r + 5.0000001201e-1f;
  y = y * r * r + r + 1.0f;
  const float scale = __builtin_bit_cast(float, (static_cast<int32_t>(steps) + 127) << 23);
  return x > -87.0f ? y * scale : x <= -87.0f ? 0.0f : x;  // NaN stays NaN
}

// x times the logistic function of u.
inline float times_sigmoid(float x, float u) {
  const float e = exponential(-__builtin_fabsf(u));
  return x * ((u >= 0 ? 1.0f : e) / (1.0f + e));
}

// y = activation(gate) * y
void apply_gate(const float* gate, Activation activation, int64_t count, float* y) {
  if (activation == Activation::silu) {
    for (int64_t i = 0; i < count; ++i) y[i] *= times_sigmoid(gate[i], gate[i]);
  } else {  // GELU by tanh (Hendrycks and Gimpel 2016, section 2): 1 + tanh(u) is twice the logistic function of 2u
    for (int64_t i = 0; i < count; ++i) {
      const float g = gate[i];
      y[i] *= times_sigmoid(g, 1.5957691216f * (g + 0.044715f * g * g * g));
    }
  }
}

// y = weight * x / sqrt(mean(x**2) + eps); x is overwritten.
void rms_norm_row(float* x, const float* weight, int64_t k, float eps, const Output& y, int64_t offset) {
  float sums[16] = {}, sum = 0;
  each_lane(x, k, [&](int j, float v) { sums[j] += v * v; });
  for (float s : sums) sum += s;
  const float inverse = 1 / __builtin_sqrtf(sum / float(k) + eps);
  for (int64_t i = 0; i < k; ++i) x[i] = x[i] * inverse * weight[i];
  store_row(x, k, y.dtype, y.data, offset);
}

// Rotates the two halves of each of some adjacent heads of `depth` elements into each other, in place (Su et al. 2021,
// section 3.4.2).
void rotate_heads(void* data, Dtype dtype, int64_t heads, int64_t depth, const float* cosine, const float* sine) {
  float* x = scratch<float>(0, heads * depth);
  const int64_t half = depth / 2;
  load_row(data, dtype, heads * depth, x);
  for (int64_t head = 0; head < heads; ++head) {
    float *first = x + head * depth, *second = first + half;
    for (int64_t i = 0; i < half; ++i) {
      const float a = first[i], b = second[i];
      first[i] = a * cosine[i] - b * sine[i];
      second[i] = b * cosine[half + i] + a * sine[half + i];
    }
  }
  store_row(x, heads * depth, dtype, data, 0);
}
