// main <library> <function> 0|1: calls it; says what it returns. Exit status 3: not nullptr.
#include <dlfcn.h>

#include <cstdio>

int main(int, char** arguments) {
  void* library = dlopen(arguments[1], RTLD_NOW | RTLD_LOCAL);
  if (!library) return fprintf(stderr, "%s\n", dlerror()), 2;
  auto* function = reinterpret_cast<const char* (*)(bool)>(dlsym(library, arguments[2]));
  if (!function) return fprintf(stderr, "%s\n", dlerror()), 2;
  const char* error = function(arguments[3][0] == '1');
  if (error) printf("returned: %s\n", error);
  return error ? 3 : 0;
}
