// A reference to something callable: passes a lambda without a template and without an allocation.
#pragma once

#include <type_traits>
#include <utility>

namespace kvik {

template <typename Signature>
class FunctionRef;

// Non-owning: the callable must outlive the call, as a temporary in the call's argument does.
template <typename Result, typename... Args>
class FunctionRef<Result(Args...)> {
 public:
  template <typename F>
    requires(!std::is_same_v<F, FunctionRef>)
  FunctionRef(const F& f)  // NOLINT: implicit on purpose
      : object_(&f), call_([](const void* object, Args... args) -> Result {
          return (*static_cast<const F*>(object))(std::forward<Args>(args)...);
        }) {}
  Result operator()(Args... args) const { return call_(object_, std::forward<Args>(args)...); }

 private:
  const void* object_;
  Result (*call_)(const void*, Args...);
};

}  // namespace kvik
