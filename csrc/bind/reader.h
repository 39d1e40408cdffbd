// Strict reading of a Python dict.
#pragma once

#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <initializer_list>
#include <set>
#include <string>
#include <utility>

#include "base/check.h"

namespace tokprune::bind {

namespace py = pybind11;

// Reads a dict key by key and refuses what nobody asked for.
class Reader {
 public:
  Reader(py::dict dict, std::string where) : dict_(std::move(dict)), where_(std::move(where)) {}

  template <class T>
  T get(const char* key) {
    require(dict_.contains(key), where_, " lacks '", key, "'");
    seen_.insert(key);
    try {
      return dict_[key].cast<T>();
    } catch (const py::cast_error&) {
      const std::string type = py::str(py::type::of(dict_[key]).attr("__name__"));
      throw py::type_error(concat(where_, " '", key, "' has the wrong type: ", type));
    }
  }

  template <class E>
  E choice(const char* key, std::initializer_list<std::pair<const char*, E>> options) {
    const auto text = get<std::string>(key);
    std::string known;
    for (const auto& [name, value] : options) {
      if (text == name) return value;
      known += (known.empty() ? "" : ", ") + std::string(name);
    }
    require(false, where_, " '", key, "' is '", text, "'; expected one of ", known);
    return {};
  }

  // Keys that mean nothing here.
  void skip(std::initializer_list<const char*> keys) {
    for (const char* key : keys) seen_.insert(key);
  }

  void finish() const {
    for (const auto& item : dict_) {
      const std::string key = py::str(item.first);
      require(seen_.contains(key), where_, " has an unknown key '", key, "'");
    }
  }

 private:
  py::dict dict_;
  std::string where_;
  std::set<std::string, std::less<>> seen_;
};

}  // namespace tokprune::bind
