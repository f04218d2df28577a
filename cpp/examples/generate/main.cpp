// Generates token ids from token ids.
//
//   generate MODEL.onnx MAX_NEW_TOKENS TEMPERATURE SEED ID [ID ...]
//
// Prints the new ids on one line as they come. Temperature 0 is greedy.
#include <kvik/kvik.h>

#include <cstdint>
#include <cstdlib>
#include <iostream>

int main(int argc, char** argv) try {
  if (argc < 6) {
    std::cerr << "usage: " << argv[0]
              << " MODEL.onnx MAX_NEW_TOKENS TEMPERATURE SEED ID [ID ...]\n";
    return 2;
  }
  const kvik::Model model = kvik::Model::load(argv[1]);
  for (const std::string& line : model.explain()) std::cerr << line << '\n';

  kvik::GenerateRequest request;
  request.max_new_tokens = std::atoll(argv[2]);
  request.sampler.temperature = std::atof(argv[3]);
  request.sampler.seed = std::strtoull(argv[4], nullptr, 10);
  for (int i = 5; i < argc; ++i) request.prompt.push_back(std::atoll(argv[i]));

  const char* separator = "";
  const auto print = [&](const kvik::GenerateEvent& event) {
    if (event.token >= 0) {
      std::cout << separator << event.token << std::flush;
      separator = " ";
    }
    return false;  // true would stop
  };
  const kvik::GenerateResult result = kvik::generate(model, request, print);
  std::cout << '\n';
  std::cerr << result.tokens.size() << " tokens, ended by "
            << kvik::finish_reason_name(result.reason) << '\n';
} catch (const kvik::Error& error) {
  std::cerr << "error: " << error.what() << '\n';
  return 1;
}
