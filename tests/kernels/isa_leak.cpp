// A file that leaks a weak symbol, named so that check_linkage.cmake looks at it: the check must
// fail on it, and does so on twice(float) alone.
inline float twice(float x) {
  return x + x;
}
[[gnu::used]] static float (*const leak)(float) = twice;
